"""Tensors of mostly zeros, stored as one bit a value and the values that are not zero; exact to the bit."""

import numpy as np
import torch
from torch import Tensor

from sparse_pretrain.pruning.bits import pack_bits, unpack_bits

# A sample of so many values tells whether dropping zeros is worth the work.
SAMPLE = 4096
# From this share of zeros on: the bits cost 1/32 of the values.
WORTH_FROM = 0.25


def is_worth_it(values: Tensor) -> bool:
    """Say whether a flat fp32 tensor gets smaller enough without its zeros, by a look at a sample."""
    if values.dtype != torch.float32 or values.numel() < SAMPLE:
        return False
    sample = values[:: values.numel() // SAMPLE]
    return int(torch.count_nonzero(sample)) <= (1.0 - WORTH_FROM) * sample.numel()


def drop_zeros(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return (bits: uint8 [ceil(n / 8)], kept: fp32 [number that are not zero]) of a flat fp32 tensor [n].

    A value is dropped when all its bits are zero: -0.0 is kept.
    """
    # As integers: moving floats one by one may change the bits of a NaN.
    patterns = values.numpy().view(np.int32)
    kept = patterns != 0
    return pack_bits(torch.from_numpy(kept)), torch.from_numpy(patterns[kept].view(np.float32))


def restore_zeros(bits: Tensor, kept: Tensor, first: int, length: int) -> Tensor:
    """Return values [first, first + length) of what `drop_zeros` was given.

    Args:
        bits: all of them.
        kept: all of them.
        first: index of the first value.
        length: number of values.
    """
    before = count_bits(bits, first)
    present = unpack_bits(bits, length, first).numpy()
    patterns = np.zeros(length, dtype=np.int32)
    patterns[present] = kept.numpy().view(np.int32)[before : before + np.count_nonzero(present)]
    return torch.from_numpy(patterns.view(np.float32))


def count_bits(bits: Tensor, count: int) -> int:
    """Return how many of the first `count` bits are set."""
    whole, rest = divmod(count, 8)
    total = int(np.bitwise_count(bits[:whole].numpy()).sum(dtype=np.int64))
    if rest:
        total += int(unpack_bits(bits[whole : whole + 1], rest).sum())
    return total
