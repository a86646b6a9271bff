"""Rounding to 8 bits and back, in fp32 whatever the tensors' own type; gradients go straight through.

torch's own operator does it: torchao's quantization-aware training has no moving-average ranges of whole tensors, and
torch.ao.quantization, which has them, is deprecated.
"""

import torch
from torch import Tensor

# Symmetric: -128 has no counterpart, and zero is exactly zero.
WEIGHT_LEVELS = (-127, 127)
ACTIVATION_LEVELS = (0, 255)
# A constant tensor has no range; this keeps its scale above zero.
SMALLEST_SCALE = 1e-10


def weight_scale(weight: Tensor) -> Tensor:
    """Return the scale of a weight of any shape, fp32 [], from its largest magnitude."""
    largest = weight.detach().abs().amax().float()
    return (largest / WEIGHT_LEVELS[1]).clamp_min(SMALLEST_SCALE)


def affine(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale, fp32 [], and zero point, int32 [], that cover a range, and zero, by 256 levels.

    Zero is a level: padding and what ReLU cut off stay what they are.
    """
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = ((high - low) / ACTIVATION_LEVELS[1]).clamp_min(SMALLEST_SCALE)
    return scale, (-low / scale).round().clamp(*ACTIVATION_LEVELS).to(torch.int32)


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, levels: tuple[int, int]) -> Tensor:
    """Return values rounded to levels and back, in their own type.

    q = clamp(round(x / scale) + zero_point, levels); x' = (q - zero_point) * scale.

    The gradient is 1 inside the levels' range and 0 outside (Jacob et al. 2018, section 3). The rounding itself is done
    in fp32: bf16 has just the 8 bits that int8 wants to choose among.

    Args:
        values: any shape and floating type.
        scale: fp32 [].
        zero_point: int32 [].
        levels: smallest and largest integer.
    """
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero_point, *levels)
    return rounded.to(values.dtype)


def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Return a weight, or rows of one, rounded symmetrically by the whole weight's scale."""
    return fake_quantize(weight, scale, torch.zeros_like(scale, dtype=torch.int32), WEIGHT_LEVELS)


def integers(weight: Tensor) -> Tensor:
    """Return a weight's int8 levels: times `weight_scale` they are what `fake_quantize_weight` gives."""
    # Times the inverse, as torch's operator does it: a division rounds some ties the other way.
    levels = (weight.detach().float() * weight_scale(weight).reciprocal()).round()
    return levels.clamp(*WEIGHT_LEVELS).to(torch.int8)
