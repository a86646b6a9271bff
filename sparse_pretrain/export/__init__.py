"""Deployable forms of a sparse model: bitmask and 2:4 safetensors, ONNX, OpenVINO, and a report that compares them."""

from sparse_pretrain.export.bitmask import load_bitmask
from sparse_pretrain.export.loading import load_model
from sparse_pretrain.export.two_four import load_two_four

__all__ = ["load_bitmask", "load_model", "load_two_four"]
