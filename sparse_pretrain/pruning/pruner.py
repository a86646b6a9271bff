"""Drives schedule, scorer and allocation, and keeps the masks: the only stateful part of pruning."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.allocation import keep_highest
from sparse_pretrain.pruning.masks import Flips, MaskSet
from sparse_pretrain.pruning.schedule import Ramp, cubic_sparsity
from sparse_pretrain.pruning.scorer import magnitude


class WeightAccess(Protocol):
    """What pruning asks of whoever holds the weights, whole or in shards."""

    def full_master(self, name: str) -> Tensor:
        """Return the whole fp32 master of a weight; every rank must call, every rank gets the same."""
        ...

    def mask_working_copies(self, masks: MaskSet) -> None:
        """Multiply the copies that forward uses by their masks, in place."""
        ...

    def zero_pruned(self, masks: MaskSet) -> None:
        """Set master and optimizer moments of pruned weights to zero, in place."""
        ...

    def agree(self, digest: str) -> bool:
        """Say whether all ranks passed the same string."""
        ...


@dataclass(frozen=True)
class MaskUpdate:
    """What one update of the masks did; `flips` by weight name."""

    step: int
    target_sparsity: float
    flips: dict[str, Flips]
    froze: bool


class Pruner:
    """Gradual magnitude pruning; `Stateful`.

    While masks change, the fp32 masters stay dense and only the working copies are masked: a pruned
    weight gets no gradient, but comes back when its master's magnitude says so. After the last update
    the masks freeze and master and moments of pruned weights become zero once. With
    `regrowth: false` they become zero at every update.
    """

    def __init__(self, section: PruningSection, masks: MaskSet, weights: WeightAccess) -> None:
        self.section = section
        self.masks = masks
        self.frozen = False
        self.sparsity = masks.total_sparsity()
        self._weights = weights
        self._ramp = Ramp(section.begin, section.ramp_end, section.initial_sparsity, section.target_sparsity)

    def target_sparsity(self, step: int) -> float:
        """Return the share of zeros that the schedule asks for after `step` steps."""
        if step < self.section.begin:
            return 0.0
        return cubic_sparsity(min(step, self.section.last_update), self._ramp)

    def is_update_step(self, step: int) -> bool:
        """Say whether masks are recomputed after `step` steps."""
        section = self.section
        inside = section.begin <= step <= section.last_update
        return not self.frozen and inside and (step - section.begin) % section.frequency == 0

    def after_step(self, step: int) -> MaskUpdate | None:
        """Keep the masks in force after optimizer step number `step` (0: before the first).

        Returns:
            What changed, when this was an update step.

        Raises:
            RuntimeError: ranks computed different masks.
        """
        update = self._update(step) if self.is_update_step(step) else None
        self._weights.mask_working_copies(self.masks)
        return update

    def _update(self, step: int) -> MaskUpdate:
        target = self.target_sparsity(step)
        flips = {
            name: self.masks.replace(name, keep_highest(magnitude(self._weights.full_master(name)), target))
            for name in self.masks
        }
        if not self._weights.agree(self.masks.digest()):
            raise RuntimeError(f"step {step}: ranks computed different masks")
        self.sparsity = self.masks.total_sparsity()
        self.frozen = step == self.section.last_update
        if self.frozen or not self.section.regrowth:
            self._weights.zero_pruned(self.masks)
        return MaskUpdate(step, target, flips, self.frozen)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the masks (which have a file of their own)."""
        return {"frozen": self.frozen, "masks": self.masks.digest()}

    def load_state_dict(self, state: dict[str, Any], masks: MaskSet) -> None:
        """Take over saved masks and go on with the ramp where it stood.

        Raises:
            ValueError: the masks are not the ones that were saved with this state, or do not fit.
        """
        if masks.digest() != state["masks"] or set(masks) != set(self.masks):
            raise ValueError("the saved masks do not belong to this state or this model")
        for name, mask in masks.items():
            self.masks.replace(name, mask)
        self.sparsity = self.masks.total_sparsity()
        self.frozen = bool(state["frozen"])
