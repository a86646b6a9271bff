"""Weights in memory, cut among the ranks of a lock-step group as an optimizer would cut them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.ranks import Ranks
from sparse_pretrain.pruning.scorer import Part


class MemoryWeights:
    """A rank's slices of flat, concatenated weights; `WeightAccess` without an engine.

    All weights are laid end to end and cut into equal pieces, as ZeRO 1 and 2 do, or every weight is cut
    by itself (`each`), as ZeRO 3 does.
    """

    gradient_scale = 1.0

    def __init__(self, weights: Mapping[str, Tensor], ranks: Ranks, each: bool = False) -> None:
        self.ranks = ranks
        self.device = torch.device("cpu")
        self.extents: dict[str, tuple[int, int]] = {}
        total = sum(weight.numel() for weight in weights.values())
        offset = 0
        for name, weight in weights.items():
            size = weight.numel() if each else total
            step = -(-size // ranks.size)
            begin = step * ranks.rank - (0 if each else offset)
            first = min(max(begin, 0), weight.numel())
            last = min(max(begin + step, 0), weight.numel())
            self.extents[name] = (first, last - first)
            offset += weight.numel()
        self.master = {
            name: weights[name].reshape(-1)[start : start + length].clone()
            for name, (start, length) in self.extents.items()
        }
        self.gradients = {name: torch.ones_like(part) for name, part in self.master.items()}
        self.copies = {name: weight.clone() for name, weight in weights.items()}

    def step(self) -> None:
        """Do what an engine's step ends with: copies become what the masters are (of this rank's parts)."""
        for name, (start, length) in self.extents.items():
            self.copies[name].view(-1)[start : start + length] = self.master[name]

    def gradients_are_finite(self) -> bool:
        broken = sum(int((~torch.isfinite(gradient)).sum()) for gradient in self.gradients.values())
        return int(self.ranks.sum(torch.tensor([broken]))) == 0

    def part(self, name: str) -> Part | None:
        start, length = self.extents[name]
        return Part(name, start, self.master[name]) if length else None

    def gradient(self, name: str) -> Tensor | None:
        return self.gradients[name] if self.extents[name][1] else None

    def working(self, name: str) -> tuple[int, Tensor]:
        return 0, self.copies[name].view(-1)

    def mask_working_copies(self, masks: MaskSet) -> None:
        for name in masks:
            masks.multiply(name, self.copies[name])

    def zero_pruned(self, masks: MaskSet) -> None:
        for name in masks:
            masks.multiply(name, self.master[name], self.extents[name][0])
