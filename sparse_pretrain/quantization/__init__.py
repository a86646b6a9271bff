"""Int8 quantization-aware training: what is rounded, when, and how it is kept beside a model."""

from sparse_pretrain.quantization.stored import load_quantization

__all__ = ["load_quantization"]
