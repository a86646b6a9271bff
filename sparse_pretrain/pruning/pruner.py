"""Drives schedule, scorer, structure and allocation, and keeps the masks: the only stateful part of pruning."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import ElementStructure, PruningSection
from sparse_pretrain.pruning.allocation import budget, most_that_may_go, scopes
from sparse_pretrain.pruning.bits import share_of_empty_rows
from sparse_pretrain.pruning.exchange import Extents, Piece, collect, exchange, owners
from sparse_pretrain.pruning.masks import Flips, MaskSet
from sparse_pretrain.pruning.schedule import (
    Schedule,
    is_update_step,
    may_regrow,
    target_sparsity,
    weight_sparsity,
)
from sparse_pretrain.pruning.scorer import Part, Scorer
from sparse_pretrain.pruning.selection import Segment, Selection, prune_lowest
from sparse_pretrain.pruning.structure import GroupScores, Structure
from sparse_pretrain.pruning.update import LayerUpdate, MaskUpdate
from sparse_pretrain.pruning.verify import same_everywhere, verify
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
        self.section = section
        self.schedule = Schedule.of(section)
        self.scorer = scorer
        self.frozen = False
        self._weights = weights
        self._weight_decay = weight_decay
        self._structure = structure
        self._units = list(structure.units(shapes))
        members = [member for unit in self._units for member in unit.members]
        self._shapes = {name: shape for name, shape in shapes.items() if name in set(members)}
        sizes = {name: shape.numel() for name, shape in self._shapes.items()}
        self._scopes = scopes(section.allocation, section.target_sparsity, self._units, sizes)
        self._unit_weights = [sum(sizes[member] for member in unit.members) for unit in self._units]
        self._owners = owners(self._units, sizes, weights.ranks.size)
        self.masks = MaskSet.dense(self._shapes, weights.device, section.masks.packed)
        self.sparsity = 0.0
        # Whether masters of pruned weights are zero: then the copies made of them are, too.
        self._zeroed = False
        self._gathered: Extents | None = None

    # --- around the optimizer step -----------------------------------------------------------------

    def before_step(self) -> None:
        """Show the coming step's gradients to the scorer, then set those of pruned weights to zero.

        Clipping sees masked gradients only, as in `forward(w * mask)`; the scorer sees all of them.
        """
        observing = self.scorer.needs_gradients and not self.frozen and self._gradients_are_finite()
        for name in self._shapes:
            part, gradient = self._weights.part(name), self._weights.gradient(name)
            if part is None or gradient is None:
                continue
            if observing:
                scale = self._weights.gradient_scale
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
            MaskViolationError: a weight is NaN.
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

    def verify(self) -> None:
        """Prove that weights obey the masks (collective).

        Raises:
            MaskViolationError: naming the layer.
        """
        verify(self.masks, self._weights, self.frozen)

    # --- one update -----------------------------------------------------------------------------

    def _update(self, step: int) -> MaskUpdate:
        regrowth = may_regrow(step, self.schedule)
        segments = self._segments(regrowth)
        if self.section.allocation.minimum_kept:
            segments = self._protect_floor(segments)
        budgets = [budget(scope, weight_sparsity(step, self.schedule, scope.final)) for scope in self._scopes]
        try:
            selection = prune_lowest(segments, budgets, self._weights.ranks)
        except ValueError:
            self.verify()  # knows the layer's name
            raise
        flips = self._replace_masks(segments, selection)
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
        return MaskUpdate(
            step,
            self.target_sparsity(step),
            self.sparsity,
            self._layers(flips, selection.thresholds),
            self.frozen,
        )

    def _segments(self, regrowth: bool) -> list[Segment]:
        scope_of = {unit: index for index, scope in enumerate(self._scopes) for unit in scope.units}
        if isinstance(self.section.structure, ElementStructure):
            # Single weights are judged where they are: nothing is gathered, nothing is pooled.
            return [
                Segment(index, part.start, scope_of[index], GroupScores(self._scores(part, regrowth), 1))
                for index, unit in enumerate(self._units)
                if (part := self._weights.part(unit.members[0])) is not None
            ]
        return [
            Segment(index, 0, scope_of[index], groups)
            for index in range(len(self._units))
            if (groups := self._pooled(index, regrowth)) is not None
        ]

    def _scores(self, part: Part, regrowth: bool) -> Tensor:
        scores = self.scorer.score(part)
        if regrowth:
            return scores
        return scores.masked_fill(~self.masks.part(part.name, part.start, part.master.numel()), -torch.inf)

    def _pooled(self, index: int, regrowth: bool) -> GroupScores | None:
        """Bring a unit's scores to its owner and pool them there; None on the other ranks."""
        unit, owner, weights = self._units[index], self._owners[index], self._weights
        single = self._structure.groups_are_weights

        def whole(name: str) -> Tensor:
            def part() -> Tensor:
                mine = weights.part(name)
                assert mine is not None  # noqa: S101 - `collect` asks only where the extent has a length
                return self._scores(mine, regrowth or not single)

            shape, extents = self._shapes[name], self._extents
            found = collect(name, shape, part, extents, owner, weights.ranks, weights.device)
            return torch.empty(0) if found is None else found

        if weights.ranks.rank != owner:
            for name in unit.members:
                whole(name)
            return None
        groups = self._structure.pool(unit, whole)
        if regrowth or single:
            return groups
        kept = self._structure.pool(unit, lambda name: self.masks[name].float()).scores
        return replace(groups, scores=groups.scores.masked_fill(kept == 0, -torch.inf))

    @property
    def _extents(self) -> Extents:
        if self._gathered is None:
            mine = {
                name: (part.start, part.master.numel())
                for name in self._shapes
                if (part := self._weights.part(name)) is not None
            }
            self._gathered = Extents.gather(
                list(self._shapes), mine, self._weights.ranks, self._weights.device
            )
        return self._gathered

    def _protect_floor(self, segments: Sequence[Segment]) -> list[Segment]:
        """Forbid every unit to lose more than its floor allows: protect what the floor keeps of it."""
        minimum = self.section.allocation.minimum_kept
        caps = [most_that_may_go(weights, minimum) for weights in self._unit_weights]
        alone = [replace(segment, scope=segment.unit) for segment in segments]
        kept = prune_lowest(alone, caps, self._weights.ranks).keep
        return [
            replace(segment, groups=replace(segment.groups, protected=keep))
            for segment, keep in zip(segments, kept, strict=True)
        ]

    def _replace_masks(self, segments: Sequence[Segment], selection: Selection) -> dict[str, Flips]:
        names = list(self._shapes)
        row = {name: index for index, name in enumerate(names)}
        pieces: list[Piece] = []
        for segment, keep in zip(segments, selection.keep, strict=True):
            unit = self._units[segment.unit]
            if isinstance(self.section.structure, ElementStructure):
                pieces.append(Piece(row[unit.members[0]], segment.start, keep))
            else:
                expanded = self._structure.expand(unit, keep)
                pieces.extend(Piece(row[name], 0, mask.reshape(-1)) for name, mask in expanded.items())
        masks = exchange(pieces, list(self._shapes.values()), self._weights.ranks, self._weights.device)
        return {name: self.masks.replace(name, mask) for name, mask in zip(names, masks, strict=True)}

    def _layers(
        self, flips: Mapping[str, Flips], thresholds: Sequence[float | None]
    ) -> dict[str, LayerUpdate]:
        scope_of = {
            member: index
            for index, scope in enumerate(self._scopes)
            for unit in scope.units
            for member in self._units[unit].members
        }
        return {
            name: LayerUpdate(
                sparsity=self.masks.sparsity(name),
                threshold=thresholds[scope_of[name]],
                pruned=flips[name].pruned,
                regrown=flips[name].regrown,
                dead_rows=share_of_empty_rows(self.masks[name]),
            )
            for name in self._shapes
        }

    def _gradients_are_finite(self) -> bool:
        """Say whether all gradients of prunable weights are numbers; the step will be skipped when not."""
        broken = torch.zeros(1, dtype=torch.int64, device=self._weights.device)
        for name in self._shapes:
            gradient = self._weights.gradient(name)
            if gradient is not None:
                broken += torch.count_nonzero(~torch.isfinite(gradient))
        return int(self._weights.ranks.sum(broken)) == 0

    # --- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside masks and scorer's tensors (which have files of their own)."""
        return {
            "frozen": self.frozen,
            "zeroed": self._zeroed,
            "masks": self.masks.digest(),
            "scorer": self.scorer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], masks: MaskSet) -> None:
        """Take over saved masks and go on with the schedule where it stood.

        Raises:
            ValueError: the masks are not the ones that were saved with this state, or do not fit.
        """
        if masks.digest() != state["masks"] or set(masks) != set(self.masks):
            raise ValueError("the saved masks do not belong to this state or this model")
        for name, mask in masks.items():
            self.masks.replace(name, mask.to(self._weights.device))
        self.sparsity = self.masks.total_sparsity()
        self.frozen = bool(state["frozen"])
        self._zeroed = bool(state["zeroed"])
        self.scorer.load_state_dict(state["scorer"])
