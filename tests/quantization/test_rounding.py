"""Rounding to 8 bits against a plain reference written here: values, gradients, ranges."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_pretrain.quantization.layers import ActivationRange, QuantizedEmbedding, QuantizedLinear
from sparse_pretrain.quantization.rounding import (
    affine,
    fake_quantize_weight,
    integers,
    weight_scale,
)

MOMENTUM = 0.25


def rounded(values: Tensor, scale: float, zero: int, low: int, high: int) -> Tensor:
    """(clamp(round(x / scale) + zero, low, high) - zero) * scale; the gradient passes where nothing is cut off."""
    levels = torch.round(values.detach().double() / scale) + zero
    result = ((levels.clamp(low, high) - zero) * scale).to(values.dtype)
    through = torch.where((levels >= low) & (levels <= high), values, values.detach())
    return through + (result - through).detach()


class Reference:
    """An int8 Linear, step by step: weight by its largest magnitude, activations by a moving minimum and maximum."""

    def __init__(self) -> None:
        self.ranges: dict[str, tuple[float, float]] = {}

    def activation(self, name: str, values: Tensor) -> Tensor:
        low, high = values.min().item(), values.max().item()
        if name in self.ranges:
            before = self.ranges[name]
            low = before[0] + MOMENTUM * (low - before[0])
            high = before[1] + MOMENTUM * (high - before[1])
        self.ranges[name] = (low, high)
        scale = (max(high, 0.0) - min(low, 0.0)) / 255
        zero = min(max(round(-min(low, 0.0) / scale), 0), 255)
        return rounded(values, scale, zero, 0, 255)

    def linear(self, values: Tensor, weight: Tensor, bias: Tensor, requantize: bool) -> Tensor:
        matrix = rounded(weight, weight.abs().max().item() / 127, 0, -127, 127)
        output = F.linear(self.activation("input", values), matrix, bias)
        return self.activation("output", output) if requantize else output


@pytest.mark.parametrize("requantize", [True, False])
def test_linear_is_the_plain_reference_forward_and_backward(requantize: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 10)
    layer = QuantizedLinear(linear, MOMENTUM, requantize).train()
    assert layer.weight is linear.weight
    layer.rounding = True
    for part in (layer.input_range, layer.output_range):
        if part is not None:
            part.observing = part.rounding = True
    reference = Reference()
    weight, bias = (value.detach().clone().requires_grad_() for value in (linear.weight, linear.bias))
    for size in (
        1.0,
        2.0,
        0.3,
    ):  # the last batches are cut off by the average of those before, or fill half of it
        values = (size * torch.randn(5, 7, 24) + 0.2).requires_grad_()
        again = values.detach().clone().requires_grad_()
        ours, theirs = layer(values), reference.linear(again, weight, bias, requantize)
        assert torch.allclose(ours, theirs, atol=1e-5)
        toward = torch.randn_like(ours)
        ours.backward(toward)
        theirs.backward(toward)
        for one, other in ((values, again), (layer.weight, weight), (layer.bias, bias)):
            assert one.grad is not None
            assert other.grad is not None
            assert torch.allclose(one.grad, other.grad, atol=1e-4)
    for own, part in (("input", layer.input_range), ("output", layer.output_range)):
        if part is not None:
            assert (part.low.item(), part.high.item()) == pytest.approx(reference.ranges[own], rel=1e-5)


def test_embedding_rounds_by_the_scale_of_its_whole_table() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(9, 4, padding_idx=0)
    layer = QuantizedEmbedding(table)
    layer.rounding = True
    ids = torch.tensor([[1, 2, 0], [2, 2, 5]])
    weight = table.weight.detach().clone().requires_grad_()
    table_rounded = rounded(weight, weight.abs().max().item() / 127, 0, -127, 127)
    expected = F.embedding(ids, table_rounded, padding_idx=0)
    found = layer(ids)
    assert torch.allclose(found, expected, atol=1e-7)
    expected.square().sum().backward()
    found.square().sum().backward()
    assert weight.grad is not None
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, weight.grad, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=40), st.integers(0, 2**32 - 1))
def test_weights_keep_their_zeros_and_are_their_integers_times_the_scale(
    values: list[float], seed: int
) -> None:
    weight = torch.tensor(values)
    weight[torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.5] = 0.0
    scale = weight_scale(weight)
    found = fake_quantize_weight(weight, scale)
    assert bool((found[weight == 0] == 0).all())
    assert torch.equal(found, integers(weight).float() * scale)
    assert float((found - weight).abs().max()) <= 0.501 * float(scale)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e3, 1e3, width=32), st.floats(0, 1e3, width=32))
def test_an_activation_range_contains_zero_as_a_level(low: float, extent: float) -> None:
    scale, zero = affine(torch.tensor(low), torch.tensor(low + extent))
    assert 0 <= int(zero) <= 255
    least, most = ((bound - int(zero)) * float(scale) for bound in (0, 255))
    slack = 0.51 * float(scale)
    assert least - slack <= min(low, 0.0)
    assert max(low + extent, 0.0) <= most + slack


def test_bf16_values_are_rounded_like_their_fp32_selves() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64).bfloat16()
    found = fake_quantize_weight(weight, weight_scale(weight))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, fake_quantize_weight(weight.float(), weight_scale(weight)).bfloat16())
    activation = ActivationRange(0.1).train()
    activation.observing = activation.rounding = True
    assert activation(weight).dtype == torch.bfloat16
    assert activation.scale.dtype == torch.float32
