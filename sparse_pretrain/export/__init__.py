"""Deployable forms of a sparse model: bitmask safetensors, ONNX, OpenVINO, and a report that compares them."""

from sparse_pretrain.export.bitmask import load_bitmask
from sparse_pretrain.export.loading import load_model

__all__ = ["load_bitmask", "load_model"]
