"""Floats as integers of the same order, and their histograms digit by digit.

A score's 32 bits, read as a signed integer, rise with the score once negative numbers are flipped. Three
digits of 12, 10 and 10 bits then find the k-th smallest score with three histograms, where comparing
floats would need a sort.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

DIGIT_BITS = (12, 10, 10)
# Everything that a digit needs of a chunk stays in a core's cache; a GPU wants large kernels instead.
CPU_CHUNK = 2**17
GPU_CHUNK = 2**26


def chunk_length(scores: Tensor) -> int:
    """Return how many scores are worked on at a time on their device."""
    return CPU_CHUNK if scores.device.type == "cpu" else GPU_CHUNK


def sortable(scores: Tensor) -> Tensor:
    """Return int32 keys that compare as the float32 scores do; -0.0 and 0.0 get the same key."""
    bits = (scores + 0.0).view(torch.int32)
    if bits.device.type == "cpu" and bool(bits.min() >= 0):
        return bits
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def to_float(key: int) -> float:
    """Return the float32 score of a key of `sortable`."""
    bits = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def digit(keys: Tensor, place: int) -> Tensor:
    """Return the digit of int32 keys at a place: 0 is the highest, and keeps the keys' order."""
    rest = keys >> sum(DIGIT_BITS[place + 1 :])
    return rest + (1 << DIGIT_BITS[0] - 1) if place == 0 else rest & ((1 << DIGIT_BITS[place]) - 1)


def join(digits: tuple[int, ...]) -> int:
    """Return the key whose digits these are."""
    key = digits[0] - (1 << DIGIT_BITS[0] - 1)
    for value, bits in zip(digits[1:], DIGIT_BITS[1:], strict=True):
        key = (key << bits) | value
    return key


def chunks(scores: Tensor, sizes: Tensor | int, free: Tensor | None) -> Iterator[tuple[Tensor, Tensor | int]]:
    """Yield keys and group sizes chunk by chunk, without the groups that are not `free`."""
    step = chunk_length(scores)
    for first in range(0, scores.numel(), step):
        part = slice(first, first + step)
        keys = sortable(scores[part])
        size = sizes[part] if isinstance(sizes, Tensor) else sizes
        if free is None:
            yield keys, size
        else:
            chosen = free[part]
            yield keys[chosen], size[chosen] if isinstance(size, Tensor) else size


def histogram(digits: Tensor, sizes: Tensor | int, place: int) -> Tensor:
    """Return the weights, int64 [2 ** DIGIT_BITS[place]], that groups with each digit hold."""
    buckets = 2 ** DIGIT_BITS[place]
    if isinstance(sizes, Tensor):
        # float64 counts whole numbers exactly up to 2^53.
        return torch.bincount(digits, weights=sizes.double(), minlength=buckets).to(torch.int64)
    return torch.bincount(digits, minlength=buckets) * sizes
