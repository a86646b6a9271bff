"""Drives schedule, scorer, structure and allocation, and keeps the masks: the only stateful part of pruning."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.allocation import Scope
from sparse_pretrain.pruning.bits import share_of_empty_rows
from sparse_pretrain.pruning.contest import Contest
from sparse_pretrain.pruning.masks import Flips, MaskSet
from sparse_pretrain.pruning.schedule import (
    Schedule,
    is_update_step,
    may_regrow,
    target_sparsity,
    weight_sparsity,
)
from sparse_pretrain.pruning.scorer import Scorer
from sparse_pretrain.pruning.selection import ScoreIsNaNError
from sparse_pretrain.pruning.structure import Structure
from sparse_pretrain.pruning.update import LayerUpdate, MaskUpdate
from sparse_pretrain.pruning.verify import check_finite, find_fault, same_everywhere
from sparse_pretrain.pruning.weights import WeightAccess


class Pruner:
    """Gradual pruning; `Stateful`.

    While masks change, the fp32 masters stay dense and only the working copies are masked: a pruned
    weight gets no gradient, but comes back when its master's score says so. After the last update
    the masks freeze and master and moments of pruned weights become zero once. Where regrowth is not
    allowed they become zero at every update.
    """

    def __init__(
        self,
        section: PruningSection,
        shapes: Mapping[str, torch.Size],
        weights: WeightAccess,
        structure: Structure,
        scorer: Scorer,
        weight_decay: float,
    ) -> None:
        """Start with dense masks.

        Args:
            section: the recipe's.
            shapes: of the prunable weights, in the model's order.
            weights: who holds them.
            structure: cuts them into groups; weights that it leaves out stay dense and have no mask.
            scorer: ranks them.
            weight_decay: the optimizer's, for scorers that reckon with it.

        Raises:
            UserError: structure or allocation do not fit the weights.
        """
        self.schedule = Schedule.of(section)
        self.scorer = scorer
        self.frozen = False
        self._weights = weights
        self._weight_decay = weight_decay
        self._contest = Contest(section, shapes, structure, weights)
        self._shapes = self._contest.shapes
        self.masks = MaskSet.dense(self._shapes, weights.device, section.masks.packed)
        self.sparsity = 0.0
        # Whether masters of pruned weights are zero: then the copies made of them are, too.
        self._zeroed = False

    # --- around the optimizer step -----------------------------------------------------------------

    def before_step(self) -> None:
        """Show the coming step's gradients to the scorer, then set those of pruned weights to zero.

        Clipping sees masked gradients only, as in `forward(w * mask)`; the scorer sees all of them.
        """
        observing = self.scorer.needs_gradients and not self.frozen
        # A step that will be skipped is none.
        observing = observing and self._weights.gradients_are_finite()
        scale = self._weights.gradient_scale
        for name in self._shapes:
            part, gradient = self._weights.part(name), self._weights.gradient(name)
            if part is None or gradient is None:
                continue
            if observing:
                self.scorer.observe(part, gradient if scale == 1.0 else gradient.float() / scale)
            self.masks.multiply(name, gradient, part.start)

    def after_step(self, step: int, learning_rate: float = 0.0, applied: bool = True) -> MaskUpdate | None:
        """Keep the masks in force after optimizer step number `step` (0: before the first).

        Args:
            step: steps done.
            learning_rate: that the step used.
            applied: False when the step was skipped.

        Returns:
            What changed, when this was an update step.

        Raises:
            BrokenWeightsError: a weight is NaN.
            RuntimeError: ranks computed different masks.
        """
        if applied and step and not self.frozen:
            self.scorer.after_step(learning_rate, self._weight_decay)
        update = self._update(step) if self.is_update_step(step) else None
        if update is not None or not self._zeroed:
            self._weights.mask_working_copies(self.masks)
        return update

    def target_sparsity(self, step: int) -> float:
        """Return the share of zeros that the schedule asks for after `step` steps."""
        return target_sparsity(step, self.schedule)

    def is_update_step(self, step: int) -> bool:
        """Say whether masks are recomputed after `step` steps."""
        return not self.frozen and is_update_step(step, self.schedule)

    def find_fault(self) -> str | None:
        """Return the first layer of which this rank holds weights that do not obey their mask, or None."""
        return find_fault(self.masks, self._weights, self.frozen)

    # --- one update -----------------------------------------------------------------------------

    def _update(self, step: int) -> MaskUpdate:
        regrowth = may_regrow(step, self.schedule)

        def share(scope: Scope) -> float:
            return weight_sparsity(step, self.schedule, scope.final)

        try:
            drawn, thresholds = self._contest.draw(self.scorer.score, share, self.masks, regrowth)
        except ScoreIsNaNError:
            check_finite(self._shapes, self._weights)  # knows the layer's name
            raise
        flips = {name: self.masks.replace(name, mask) for name, mask in drawn}
        if not same_everywhere(self.masks, self._weights):
            raise RuntimeError(f"step {step}: ranks computed different masks")
        for name in self._shapes:
            part = self._weights.part(name)
            if part is not None:
                self.scorer.after_update(part, self.masks.part(name, part.start, part.master.numel()))
        self.sparsity = self.masks.total_sparsity()
        self.frozen = step == self.schedule.last_update
        self._zeroed = self.frozen or not regrowth
        if self._zeroed:
            self._weights.zero_pruned(self.masks)
        layers = {name: self._layer(name, flips[name], thresholds[name]) for name in self._shapes}
        return MaskUpdate(step, self.target_sparsity(step), self.sparsity, layers, self.frozen)

    def _layer(self, name: str, flips: Flips, threshold: float | None) -> LayerUpdate:
        return LayerUpdate(
            sparsity=self.masks.sparsity(name),
            threshold=None if threshold == -math.inf else threshold,
            pruned=flips.pruned,
            regrown=flips.regrown,
            dead_rows=share_of_empty_rows(self.masks[name]),
        )

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside masks and scorer's tensors (which have files of their own)."""
        return {
            "frozen": self.frozen,
            "zeroed": self._zeroed,
            "scorer": {"name": type(self.scorer).__name__, **self.scorer.state_dict()},
        }

    def load_state_dict(self, state: Mapping[str, Any], masks: MaskSet) -> None:
        """Take over saved masks and go on with the schedule where it stood.

        Raises:
            ValueError: the masks are of other weights, or another scorer made them.
        """
        scorer = type(self.scorer).__name__
        if state["scorer"]["name"] != scorer and not state["frozen"]:
            raise ValueError(f"it was saved with scorer {state['scorer']['name']}, the recipe has {scorer}")
        if masks.shapes != self.masks.shapes:
            raise ValueError("the saved masks are not of the weights that this recipe prunes")
        for name, mask in masks.items():
            self.masks.replace(name, mask.to(self._weights.device))
        self.sparsity = self.masks.total_sparsity()
        self.frozen = bool(state["frozen"])
        self._zeroed = bool(state["zeroed"])
        if state["scorer"]["name"] == scorer:
            self.scorer.load_state_dict(state["scorer"])
