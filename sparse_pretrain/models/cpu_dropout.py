"""Dropout on CPUs. torch draws its masks there with one core and a number at a time: a tenth of a step.

The keep-masks are of 16 random bits an element, so that a probability is met within 1/65,536. They depend on torch's
global generator alone, one draw of it for each mask: a restored generator gives the same masks again. The backward
pass draws a mask anew from its seed: that takes less time than memory would cost.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16
INTEGERS: dict[int, tuple[torch.dtype, Any]] = {2: (torch.int16, np.int16), 4: (torch.int32, np.int32)}


def draw_seed() -> int:
    """Return the seed of one mask, from torch's global generator."""
    return int(torch.randint(2**62, (), dtype=torch.int64))


def keep_mask(seed: int, shape: torch.Size, dropout: float, dtype: torch.dtype) -> Tensor:
    """Return what dropout multiplies by: 0, or 1 / (1 - dropout), `dtype` [shape].

    Args:
        seed: of this mask; the same one gives the same mask again.
        shape: of the values.
        dropout: probability of 0, in [0, 1).
        dtype: of the values.
    """
    random = np.random.SFC64(seed)
    words = random.random_raw(-(-shape.numel() // 4))
    kept = words.view(np.uint16)[: shape.numel()] >= round(dropout * LEVELS)
    # In one pass: the bit pattern of 1 / (1 - dropout), times 0 or 1.
    like, number = INTEGERS[dtype.itemsize]
    pattern = torch.tensor(1 / (1 - dropout), dtype=dtype).view(like).item()
    bits = np.multiply(kept, number(pattern), dtype=number)
    return torch.from_numpy(bits).view(dtype).reshape(shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropout: float) -> Tensor:
        ctx.seed, ctx.dropout = draw_seed(), dropout
        return values * keep_mask(ctx.seed, values.shape, dropout, values.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (values,) = upstream
        return values * keep_mask(ctx.seed, values.shape, ctx.dropout, values.dtype), None


class CpuDropout(nn.Dropout):
    """`nn.Dropout` with masks of our own."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the values with dropped ones at zero while training, else as they are."""
        if not self.training or not self.p:
            return input
        return _Dropout.apply(input, self.p)  # type: ignore[no-any-return, no-untyped-call]


def quicken_dropout(model: nn.Module) -> None:
    """Let a model's dropout layers draw their masks this way, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = CpuDropout
