"""A random order of all weights: the baseline that any score must beat."""

import hashlib

import torch
from torch import Tensor

from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.scorers.base import BaseScorer

# SplitMix64 (Steele, Lea & Flood 2014), as signed 64-bit integers.
STEP = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64


class RandomOrder(BaseScorer):
    """A fixed number in [0, 1) for every weight, from seed, name and index alone.

    The order never changes, so that masks are nested as the sparsity grows, and does not depend on how
    weights are cut into parts. Numbers have 24 bits; equal ones go by index, like any ties.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def score(self, part: Part) -> Tensor:
        """Return the weights' numbers."""
        name = hashlib.sha256(f"{self._seed}:{part.name}".encode()).digest()
        key = int.from_bytes(name[:8], "little", signed=True)
        bits = splitmix64(key, part.start, part.master.numel(), part.master.device)
        return shift_right(bits, 40).to(torch.float32).mul_(2.0**-24)


def splitmix64(key: int, start: int, length: int, device: torch.device) -> Tensor:
    """Return outputs number `start` to `start + length` of the generator seeded with `key`; int64 [length]."""
    state = torch.arange(start + 1, start + length + 1, device=device).mul_(STEP).add_(key)
    state.bitwise_xor_(shift_right(state, 30)).mul_(FIRST)
    state.bitwise_xor_(shift_right(state, 27)).mul_(SECOND)
    return state.bitwise_xor_(shift_right(state, 31))


def shift_right(bits: Tensor, places: int) -> Tensor:
    """Shift int64 as if it were unsigned: zeros come in from the left."""
    return bits.bitwise_right_shift(places).bitwise_and_(2 ** (64 - places) - 1)
