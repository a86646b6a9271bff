"""One drawing of all masks: scores to groups, groups to verdicts, verdicts to masks on every rank."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.allocation import Scope, budget, most_that_may_go, scopes
from sparse_pretrain.pruning.exchange import Extents, Piece, collect, exchange, owners
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.selection import Segment, Selection, prune_lowest
from sparse_pretrain.pruning.structure import GroupScores, Structure
from sparse_pretrain.pruning.weights import WeightAccess

Score = Callable[[Part], Tensor]


class Contest:
    """The weights that compete for being kept, cut into groups and scopes; has no memory.

    Single weights are judged where they are, shard by shard; where a structure protects some (N:M), an
    owner gets the scores of one whole weight at a time, says which, and forgets them. Groups of several
    weights are judged by their owner, which pools the scores of one weight at a time.
    """

    def __init__(
        self,
        section: PruningSection,
        shapes: Mapping[str, torch.Size],
        structure: Structure,
        weights: WeightAccess,
    ) -> None:
        """Cut weights into groups, and share them out into scopes.

        Raises:
            UserError: structure or allocation do not fit the weights.
        """
        self._structure = structure
        self._weights = weights
        self._minimum_kept = section.allocation.minimum_kept
        self._units = list(structure.units(shapes))
        members = {member for unit in self._units for member in unit.members}
        self.shapes = {name: shape for name, shape in shapes.items() if name in members}
        sizes = {name: shape.numel() for name, shape in self.shapes.items()}
        self._unit_weights = [sum(sizes[member] for member in unit.members) for unit in self._units]
        self._owners = owners(self._units, sizes, weights.ranks.size)
        self.scopes = scopes(section.allocation, section.target_sparsity, self._units, sizes)
        self._scope_of = {unit: index for index, scope in enumerate(self.scopes) for unit in scope.units}
        self._known_extents: Extents | None = None

    def draw(
        self, score: Score, share: Callable[[Scope], float], masks: MaskSet, regrowth: bool
    ) -> tuple[Iterator[tuple[str, Tensor]], dict[str, float | None]]:
        """Draw all masks anew (collective).

        Args:
            score: scores this rank's part of a weight, float32 [length].
            share: what is to be pruned of a scope, in [0, 1].
            masks: the present ones.
            regrowth: False keeps every pruned weight pruned.

        Returns:
            The new masks, whole, on every rank, in the model's order; and every weight's threshold.

        Raises:
            ScoreIsNaNError: a score is NaN (on every rank).
        """
        segments = self._segments(score, masks, regrowth)
        if self._minimum_kept:
            segments = self._protect_floor(segments)
        budgets = [budget(scope, share(scope)) for scope in self.scopes]
        selection = prune_lowest(segments, budgets, self._weights.ranks, self._weights.device)
        shapes = list(self.shapes.values())
        pieces = self._pieces(segments, selection)
        drawn = exchange(pieces, shapes, self._weights.ranks, self._weights.device)
        thresholds = {
            member: selection.thresholds[self._scope_of[index]]
            for index, unit in enumerate(self._units)
            for member in unit.members
        }
        return zip(self.shapes, drawn, strict=True), thresholds

    def _segments(self, score: Score, masks: MaskSet, regrowth: bool) -> list[Segment]:
        if self._structure.groups_are_weights:
            return self._segments_in_shards(score, masks, regrowth)
        segments = []
        for index in range(len(self._units)):
            groups = self._pooled(index, score, masks, regrowth)
            if groups is not None:
                segments.append(Segment(index, 0, self._scope_of[index], groups))
        return segments

    def _segments_in_shards(self, score: Score, masks: MaskSet, regrowth: bool) -> list[Segment]:
        parts = {index: self._weights.part(unit.members[0]) for index, unit in enumerate(self._units)}
        held = {index: part for index, part in parts.items() if part is not None}
        scores = {index: single_scores(part, score, masks, regrowth) for index, part in held.items()}
        protected = self._protected(scores, held)
        return [
            Segment(
                index, part.start, self._scope_of[index], GroupScores(scores[index], 1, protected.get(index))
            )
            for index, part in held.items()
        ]

    def _protected(self, scores: Mapping[int, Tensor], held: Mapping[int, Part]) -> dict[int, Tensor]:
        """Return which weights of this rank's parts the structure protects, by unit (collective)."""
        if not self._structure.protects:
            return {}
        pieces = []
        for index, unit in enumerate(self._units):
            whole = self._collect(index, unit.members[0], scores.get(index))
            if whole is not None:
                groups = self._structure.pool(unit, lambda _, whole=whole: whole)  # type: ignore[misc]
                if groups.protected is not None:
                    pieces.append(Piece(index, 0, groups.protected))
        shapes = [self.shapes[unit.members[0]] for unit in self._units]
        everywhere = exchange(pieces, shapes, self._weights.ranks, self._weights.device)
        return {
            index: protected.view(-1)[held[index].start :][: held[index].master.numel()].clone()
            for index, protected in enumerate(everywhere)
            if index in held
        }

    def _pooled(self, index: int, score: Score, masks: MaskSet, regrowth: bool) -> GroupScores | None:
        """Bring a unit's scores to its owner and pool them there; None on the other ranks."""
        unit = self._units[index]

        def whole(name: str) -> Tensor:
            part = self._weights.part(name)
            mine = None if part is None else single_scores(part, score, masks, regrowth=True)
            scores = self._collect(index, name, mine)
            return torch.empty(0) if scores is None else scores

        if self._weights.ranks.rank != self._owners[index]:
            for name in unit.members:
                whole(name)
            return None
        groups = self._structure.pool(unit, whole)
        if regrowth:
            return groups
        kept = self._structure.pool(unit, lambda name: masks[name].float()).scores
        return replace(groups, scores=groups.scores.masked_fill(kept == 0, -torch.inf))

    def _collect(self, index: int, name: str, scores: Tensor | None) -> Tensor | None:
        """Return a weight's whole scores on its unit's owner, None elsewhere (collective)."""
        owner = self._owners[index]
        return collect(scores, self.shapes[name], name, self._extents, owner, self._weights.ranks)

    @property
    def _extents(self) -> Extents:
        # Gathered once: who holds what does not change during a run.
        if self._known_extents is None:
            mine = {
                name: (part.start, part.master.numel())
                for name in self.shapes
                if (part := self._weights.part(name)) is not None
            }
            self._known_extents = Extents.gather(
                list(self.shapes), mine, self._weights.ranks, self._weights.device
            )
        return self._known_extents

    def _protect_floor(self, segments: Sequence[Segment]) -> list[Segment]:
        """Forbid every unit to lose more than its floor allows: protect what the floor keeps of it."""
        caps = [most_that_may_go(weights, self._minimum_kept) for weights in self._unit_weights]
        alone = [replace(segment, scope=segment.unit) for segment in segments]
        kept = prune_lowest(alone, caps, self._weights.ranks, self._weights.device).keep
        return [
            replace(segment, groups=replace(segment.groups, protected=keep))
            for segment, keep in zip(segments, kept, strict=True)
        ]

    def _pieces(self, segments: Sequence[Segment], selection: Selection) -> list[Piece]:
        row = {name: index for index, name in enumerate(self.shapes)}
        pieces: list[Piece] = []
        for segment, keep in zip(segments, selection.keep, strict=True):
            unit = self._units[segment.unit]
            if self._structure.groups_are_weights:
                pieces.append(Piece(row[unit.members[0]], segment.start, keep))
            else:
                expanded = self._structure.expand(unit, keep)
                pieces.extend(Piece(row[name], 0, mask.reshape(-1)) for name, mask in expanded.items())
        return pieces


def single_scores(part: Part, score: Score, masks: MaskSet, regrowth: bool) -> Tensor:
    """Return a part's scores; where nothing may grow back, pruned weights come last whatever they score."""
    scores = score(part)
    if (
        scores.shape != part.master.shape
        or scores.dtype != torch.float32
        or scores.device != part.master.device
    ):
        raise TypeError(
            f"{part.name}: a scorer must return float32 {list(part.master.shape)} on {part.master.device}, "
            f"this one returned {scores.dtype} {list(scores.shape)} on {scores.device}"
        )
    if regrowth:
        return scores
    return scores.masked_fill(~masks.part(part.name, part.start, part.master.numel()), -torch.inf)
