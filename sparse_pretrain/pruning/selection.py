"""Which groups go: the exact lowest scores of a scope, found where the scores are.

Nobody gathers scores. Three all-reduced histograms narrow the threshold down to the last bit of the
float, and ties at the threshold go by global index, so that the same groups are pruned on any number of
ranks and however the scores are cut among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pretrain.pruning.radix import DIGIT_BITS, chunks, digit, histogram, join, to_float
from sparse_pretrain.pruning.ranks import Ranks
from sparse_pretrain.pruning.structure import GroupScores

# First digits of +-infinity: NaN lies there or beyond, and nowhere else.
INFINITY_DIGIT = (0x7F800000 >> 20) + 2048
MINUS_INFINITY_DIGIT = 4095 - INFINITY_DIGIT


class ScoreIsNaNError(ValueError):
    """A score is NaN; raised on every rank."""


@dataclass(frozen=True)
class Segment:
    """Consecutive groups of one unit that this rank holds.

    Attributes:
        unit: index of the unit, in the order in which ties go.
        start: index of the first group within the unit.
        scope: index of the scope that the unit competes in.
        groups: their scores, sizes and protection.
    """

    unit: int
    start: int
    scope: int
    groups: GroupScores


@dataclass(frozen=True)
class Selection:
    """What `prune_lowest` decided.

    Attributes:
        keep: bool [groups] for every segment of this rank.
        thresholds: the score at which each scope's budget is reached (for groups of one weight: the highest
            pruned score, `torch.kthvalue` of the gathered scores); None where nothing may be pruned.
    """

    keep: list[Tensor]
    thresholds: list[float | None]


def prune_lowest(
    segments: Sequence[Segment], budgets: Sequence[int], ranks: Ranks, device: torch.device
) -> Selection:
    """Prune the groups with the lowest scores of every scope, exactly as many weights as fit its budget.

    In each scope groups are taken in the order of (score, unit, index) as long as their weights add up to
    at most the budget: groups of one weight meet it exactly, larger ones miss it by less than a group.
    Protected groups are passed over. Collective.

    Args:
        segments: this rank's; over all ranks every group appears once.
        budgets: weights to prune, by scope; the same on every rank.
        ranks: over which the segments are spread.
        device: where scores live on every rank; one without segments exchanges counts there all the same.

    Raises:
        ScoreIsNaNError: a score is NaN (on every rank).
    """
    search = _Search(segments, budgets, ranks, device)
    for place in range(len(DIGIT_BITS)):
        search.narrow(place)
    keep = [
        _verdict(segment.groups, search.threshold(segment.scope), ties, allowed)
        for segment, (ties, allowed) in zip(segments, search.ties(), strict=True)
    ]
    return Selection(keep, [search.threshold(scope) for scope in range(len(budgets))])


class _Search:
    """The thresholds of all scopes, one more digit known after every step."""

    def __init__(
        self, segments: Sequence[Segment], budgets: Sequence[int], ranks: Ranks, device: torch.device
    ) -> None:
        self._segments = segments
        self._ranks = ranks
        self._device = device
        self._left = list(budgets)
        self._digits: list[tuple[int, ...]] = [() for _ in budgets]
        # What still matters of each segment: keys and sizes that share the threshold's digits so far.
        self._candidates: list[tuple[Tensor, Tensor | int]] = []

    def narrow(self, place: int) -> None:
        """Find the next digit of every scope's threshold from one all-reduced histogram."""
        buckets = 2 ** DIGIT_BITS[place]
        # One column more: NaN among protected groups, which no bucket counts.
        counts = torch.zeros(len(self._left), buckets + 1, dtype=torch.int64, device=self._device)
        for index, segment in enumerate(self._segments):
            counts[segment.scope, :buckets] += self._count(index, place)
            protected = segment.groups.protected
            if place == 0 and protected is not None:
                counts[segment.scope, buckets] += torch.isnan(segment.groups.scores[protected]).sum()
        self._ranks.sum(counts)
        if place == 0:
            self._check_numbers(counts[:, :buckets], int(counts[:, buckets].sum()))
        totals = counts[:, :buckets].cumsum(dim=1).cpu()
        for scope, total in enumerate(totals):
            budget = min(self._left[scope], int(total[-1]))
            if budget <= 0:
                self._left[scope] = 0
                continue
            value = int(torch.searchsorted(total, budget))
            self._digits[scope] = (*self._digits[scope], value)
            self._left[scope] = budget - (int(total[value - 1]) if value else 0)
        self._candidates = [self._matching(index, place) for index in range(len(self._segments))]

    def _count(self, index: int, place: int) -> Tensor:
        if place:
            keys, sizes = self._candidates[index]
            return histogram(digit(keys, place), sizes, place)
        groups = self._segments[index].groups
        counts = torch.zeros(2 ** DIGIT_BITS[0], dtype=torch.int64, device=self._device)
        for keys, sizes in chunks(groups.scores, groups.sizes, _free(groups)):
            counts += histogram(digit(keys, 0), sizes, 0)
        return counts

    def _matching(self, index: int, place: int) -> tuple[Tensor, Tensor | int]:
        """Keep the candidates of a segment whose digit is the threshold's; none when its scope is done."""
        segment = self._segments[index]
        groups = segment.groups
        wanted = self._digits[segment.scope]
        if len(wanted) <= place:
            return torch.empty(0, dtype=torch.int32, device=self._device), 1
        parts = [self._candidates[index]] if place else chunks(groups.scores, groups.sizes, _free(groups))
        keys: list[Tensor] = []
        sizes: list[Tensor] = []
        for part, size in parts:
            same = digit(part, place) == wanted[place]
            keys.append(part[same])
            if isinstance(size, Tensor):
                sizes.append(size[same])
        whole = torch.cat(keys) if keys else torch.empty(0, dtype=torch.int32, device=self._device)
        return whole, torch.cat(sizes) if sizes else (groups.sizes if isinstance(groups.sizes, int) else 1)

    def _check_numbers(self, counts: Tensor, broken: int) -> None:
        # Only when a histogram shows anything infinite is it worth looking at every score again.
        infinite = counts[:, INFINITY_DIGIT:].sum() + counts[:, : MINUS_INFINITY_DIGIT + 1].sum()
        if int(infinite):
            found = torch.zeros(1, dtype=torch.int64, device=self._device)
            for segment in self._segments:
                found += torch.isnan(segment.groups.scores).sum()
            broken += int(self._ranks.sum(found))
        if broken:
            raise ScoreIsNaNError("a score is NaN: the weights are broken, no mask can be drawn from them")

    def threshold(self, scope: int) -> float | None:
        """Return a scope's threshold; None when nothing in it may be pruned."""
        found = self._digits[scope]
        return to_float(join(found)) if len(found) == len(DIGIT_BITS) else None

    def ties(self) -> list[tuple[int, int]]:
        """Return, by segment, the weights at its scope's threshold, and how many of them may be pruned.

        The allowance goes to the segments in global order; it is negative where it is spent already.
        """
        mine = [
            [segment.scope, segment.unit, segment.start, _weights(*candidates)]
            for segment, candidates in zip(self._segments, self._candidates, strict=True)
        ]
        table = torch.tensor(mine, dtype=torch.int64, device=self._device).reshape(-1)
        everyone = torch.cat(self._ranks.gather(table)).reshape(-1, 4).tolist()
        allowed: dict[tuple[int, int], int] = {}
        left = list(self._left)
        for scope, unit, start, ties in sorted(everyone):
            allowed[unit, start] = left[scope]
            left[scope] -= ties
        return [(ties, allowed[unit, start]) for _, unit, start, ties in mine]


def _free(groups: GroupScores) -> Tensor | None:
    return None if groups.protected is None else ~groups.protected


def _weights(keys: Tensor, sizes: Tensor | int) -> int:
    return int(sizes.sum()) if isinstance(sizes, Tensor) else keys.numel() * sizes


def _verdict(groups: GroupScores, threshold: float | None, ties: int, allowed: int) -> Tensor:
    """Return which groups of a segment stay: all above the threshold, and ties beyond the allowance."""
    scores = groups.scores
    if threshold is None:
        return torch.ones_like(scores, dtype=torch.bool)
    keep = scores >= threshold if ties and allowed <= 0 else scores > threshold
    if groups.protected is not None:
        keep |= groups.protected
    if 0 < allowed < ties:
        tied = scores == threshold
        if groups.protected is not None:
            tied &= ~groups.protected
        places = torch.nonzero(tied).squeeze(1)
        sizes = groups.sizes
        weights = sizes[places] if isinstance(sizes, Tensor) else torch.full_like(places, sizes)
        keep[places[weights.cumsum(dim=0) > allowed]] = True
    return keep
