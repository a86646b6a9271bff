"""Layers as an int8 ONNX file has them: int8 weights, QuantizeLinear and DequantizeLinear with the trained scales.

Only for tracing: `torch.onnx.ops.symbolic` stands for an ONNX node and computes nothing in torch.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparse_pretrain.quantization.layers import ActivationRange, QuantizedLinear
from sparse_pretrain.quantization.prepare import quantized_layers
from sparse_pretrain.quantization.rounding import integers, weight_scale

# QuantizeLinear and DequantizeLinear of a whole tensor, zero points uint8 or int8, are in it.
OPSET = 13


def node(kind: str, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Return the output of an ONNX node of the shape of its first input."""
    symbolic: Any = torch.onnx.ops.symbolic
    return symbolic(kind, inputs, {}, dtype=dtype, shape=inputs[0].shape, version=OPSET)  # type: ignore[no-any-return]


class Activation(nn.Module):
    """A pair of QuantizeLinear and DequantizeLinear."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, activation: ActivationRange) -> None:
        super().__init__()
        self.register_buffer("scale", activation.scale.detach().clone())
        self.register_buffer("zero_point", activation.zero_point.to(torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, rounded to the trained range."""
        levels = node("QuantizeLinear", (values, self.scale, self.zero_point), torch.uint8)
        return node("DequantizeLinear", (levels, self.scale, self.zero_point), torch.float32)


class IntegerLinear(nn.Module):
    """A Linear on an int8 matrix [in, out]; engines compute `MatMul` between two DequantizeLinear in integers."""

    levels: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        # Transposed here: engines look for MatMul right behind the DequantizeLinear.
        self.register_buffer("levels", integers(layer.weight).t().contiguous())
        self.register_buffer("scale", weight_scale(layer.weight))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))
        self.bias = layer.bias
        self.input_range = Activation(layer.input_range) if layer.input_range.seen else None
        output = layer.output_range
        self.output_range = Activation(output) if output is not None and output.seen else None

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., out] for [..., in]."""
        values = input if self.input_range is None else self.input_range(input)
        weight = node("DequantizeLinear", (self.levels, self.scale, self.zero_point), torch.float32)
        output = torch.matmul(values, weight)
        if self.bias is not None:
            output = output + self.bias
        return output if self.output_range is None else self.output_range(output)


class IntegerEmbedding(nn.Module):
    """An Embedding on an int8 table: rows are looked up first, so that no engine ever widens the whole table."""

    levels: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("levels", integers(weight))
        self.register_buffer("scale", weight_scale(weight))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int8))

    def forward(self, input: Tensor) -> Tensor:
        """Return rows [..., width] for int [...]."""
        rows = torch.nn.functional.embedding(input, self.levels)
        return node("DequantizeLinear", (rows, self.scale, self.zero_point), torch.float32)


def with_integer_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model, prepared for int8, whose int8 layers are ready to be traced."""
    # The weights that are replaced are not copied.
    shared: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    traced: PreTrainedModel = copy.deepcopy(model, shared)
    for name, layer in quantized_layers(traced).items():
        parent, _, own = name.rpartition(".")
        new = IntegerLinear(layer) if isinstance(layer, QuantizedLinear) else IntegerEmbedding(layer.weight)
        setattr(traced.get_submodule(parent), own, new)
    return traced.eval()  # type: ignore[no-any-return]
