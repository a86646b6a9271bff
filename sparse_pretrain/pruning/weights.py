"""What pruning asks of whoever holds the weights, whole or in shards."""

from typing import Protocol

import torch
from torch import Tensor

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.ranks import Ranks
from sparse_pretrain.pruning.scorer import Part


class WeightAccess(Protocol):
    """The partitioned weights of a run; nothing here gathers a weight."""

    @property
    def ranks(self) -> Ranks:
        """The ranks that the weights are spread over."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        ...

    def part(self, name: str) -> Part | None:
        """Return this rank's part of a weight's fp32 master; None when it has none."""
        ...

    def gradient(self, name: str) -> Tensor | None:
        """Return the gradient of `part`, averaged over the global batch, a view [length].

        Only between the last backward of a step and the step itself; None when this rank has no part.
        """
        ...

    @property
    def gradient_scale(self) -> float:
        """What the gradients are multiplied by (fp16's loss scale), else 1."""
        ...

    def gradients_are_finite(self) -> bool:
        """Say whether no gradient of any parameter is NaN or infinite on any rank (collective).

        When one is, the step will be skipped.
        """
        ...

    def working(self, name: str) -> tuple[int, Tensor]:
        """Return what this rank holds of the copy that forward uses: index of its first element, flat view."""
        ...

    def mask_working_copies(self, masks: MaskSet) -> None:
        """Set pruned weights of the copies that forward uses to zero, in place."""
        ...

    def zero_pruned(self, masks: MaskSet) -> None:
        """Set master and optimizer moments of pruned weights to zero, in place."""
        ...
