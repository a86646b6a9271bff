"""Exact selection of the lowest scores, however they are spread over ranks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_pretrain.pruning.radix import sortable, to_float
from sparse_pretrain.pruning.ranks import OneRank
from sparse_pretrain.pruning.selection import ScoreIsNaNError, Segment, prune_lowest
from sparse_pretrain.pruning.structure import GroupScores
from tests.pruning.lockstep import LockStepRanks, run_ranks

CPU = torch.device("cpu")
ANY_FLOAT = st.floats(width=32, allow_nan=False)
# Few distinct values: ties everywhere, across weights and ranks.
TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.0, 2.0, math.inf, -math.inf, 1e-45])
SCORES = st.lists(st.lists(ANY_FLOAT | TIED, min_size=1, max_size=30), min_size=1, max_size=4)


def cut(scores: Tensor, size: int, seed: int) -> list[tuple[int, Tensor]]:
    """Cut a weight's scores into `size` consecutive parts, some empty; the order of ranks is shuffled."""
    generator = torch.Generator().manual_seed(seed)
    edges = sorted(torch.randint(0, len(scores) + 1, (size - 1,), generator=generator).tolist())
    bounds = [0, *edges, len(scores)]
    parts = [(bounds[i], scores[bounds[i] : bounds[i + 1]]) for i in range(size)]
    return [parts[i] for i in torch.randperm(size, generator=generator).tolist()]


def prune_spread(
    weights: list[Tensor], scope_of: list[int], budgets: list[int], size: int, seed: int = 0
) -> tuple[list[Tensor], list[float | None]]:
    """Prune single weights spread over `size` ranks; return whole keep masks and the thresholds."""
    parts = [cut(scores, size, seed + unit) for unit, scores in enumerate(weights)]

    def work(ranks: LockStepRanks) -> tuple[list[Segment], list[Tensor], list[float | None]]:
        mine = [(unit, *held[ranks.rank]) for unit, held in enumerate(parts)]
        segments = [
            Segment(unit, start, scope_of[unit], GroupScores(scores, 1))
            for unit, start, scores in mine
            if len(scores)
        ]
        selection = prune_lowest(segments, budgets, ranks, CPU)
        return segments, selection.keep, selection.thresholds

    masks = [torch.zeros(len(scores), dtype=torch.bool) for scores in weights]
    results = run_ranks(size, work)
    for segments, keeps, _ in results:
        for segment, keep in zip(segments, keeps, strict=True):
            masks[segment.unit][segment.start : segment.start + len(keep)] = keep
    thresholds = [repr(result[2]) for result in results]
    assert len(set(thresholds)) == 1
    return masks, results[0][2]


def sorted_reference(weights: list[Tensor], budget: int) -> list[Tensor]:
    """Prune the first `budget` of a stable sort of all weights one after another."""
    flat = torch.cat(weights)
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[torch.sort(flat, stable=True).indices[:budget]] = False
    return list(keep.split([len(scores) for scores in weights]))


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0, 1), st.integers(1, 4), st.integers(0, 99))
def test_one_threshold_for_all_weights_at_any_number_of_ranks(
    values: list[list[float]], share: float, size: int, seed: int
) -> None:
    weights = [torch.tensor(scores, dtype=torch.float32) for scores in values]
    budget = round(share * sum(map(len, values)))
    masks, (threshold,) = prune_spread(weights, [0] * len(weights), [budget], size, seed)
    for mask, expected in zip(masks, sorted_reference(weights, budget), strict=True):
        assert mask.tolist() == expected.tolist()
    if budget:
        assert threshold == float(torch.cat(weights).kthvalue(budget).values)
    else:
        assert threshold is None


@settings(max_examples=40, deadline=None)
@given(SCORES, st.floats(0, 1), st.integers(1, 3))
def test_every_weight_for_itself(values: list[list[float]], share: float, size: int) -> None:
    weights = [torch.tensor(scores, dtype=torch.float32) for scores in values]
    budgets = [round(share * len(scores)) for scores in weights]
    masks, thresholds = prune_spread(weights, list(range(len(weights))), budgets, size)
    for scores, budget, mask, threshold in zip(weights, budgets, masks, thresholds, strict=True):
        assert mask.tolist() == sorted_reference([scores], budget)[0].tolist()
        assert threshold == (float(scores.kthvalue(budget).values) if budget else None)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["random", "all equal", "all zero", "bfloat16"])
def test_global_threshold_is_kthvalue_bit_for_bit(kind: str, size: int) -> None:
    """Real sizes; bfloat16 values have thousands of ties at the threshold."""
    torch.manual_seed(1)
    weights = [torch.randn(count).abs() * 0.02 for count in (70_001, 1, 300_000, 12_345)]
    if kind == "all equal":
        weights = [torch.full_like(scores, 0.3) for scores in weights]
    if kind == "all zero":
        weights = [torch.zeros_like(scores) for scores in weights]
    if kind == "bfloat16":
        weights = [scores.bfloat16().float() for scores in weights]
    whole = torch.cat(weights)
    budget = round(0.9 * len(whole))
    masks, (threshold,) = prune_spread(weights, [0] * 4, [budget], size)
    expected = whole.kthvalue(budget).values
    assert threshold is not None
    assert torch.tensor(threshold).view(torch.int32) == expected.view(torch.int32)
    assert int(torch.cat(masks).logical_not().sum()) == budget
    assert torch.equal(torch.cat(masks), torch.cat(sorted_reference(weights, budget)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TIED | ANY_FLOAT, st.integers(1, 9), st.booleans()), min_size=1, max_size=25),
    st.integers(0, 150),
    st.integers(1, 3),
)
def test_groups_of_several_weights_fill_the_budget_from_below(
    groups: list[tuple[float, int, bool]], budget: int, size: int
) -> None:
    """The longest prefix in score order that fits; protected groups are passed over."""
    parts = [list(range(len(groups)))[rank::size] for rank in range(size)]

    def work(ranks: LockStepRanks) -> list[Tensor]:
        segments = [
            Segment(
                index,
                0,
                0,
                GroupScores(
                    torch.tensor([groups[index][0]]),
                    torch.tensor([groups[index][1]]),
                    torch.tensor([groups[index][2]]),
                ),
            )
            for index in parts[ranks.rank]
        ]
        return prune_lowest(segments, [budget], ranks, CPU).keep

    kept = {}
    for mine, keeps in zip(parts, run_ranks(size, work), strict=True):
        kept |= {index: bool(keep) for index, keep in zip(mine, keeps, strict=True)}
    left = budget
    fits = True
    order = sorted(range(len(groups)), key=lambda index: (groups[index][0], index))
    for index in order:
        _, weights, protected = groups[index]
        if not protected:
            fits = fits and weights <= left
            left -= weights if fits else 0
        assert kept[index] == (protected or not fits), (index, groups)


@pytest.mark.parametrize("value", [math.nan, -math.nan])
def test_nan_is_refused_on_every_rank(value: float) -> None:
    scores = torch.tensor([1.0, 2.0, value, 3.0])
    with pytest.raises(ValueError, match="NaN"):
        prune_spread([scores, torch.ones(3)], [0, 1], [2, 1], size=2)


@given(st.lists(ANY_FLOAT, min_size=2, max_size=50))
def test_keys_compare_as_the_floats_do(values: list[float]) -> None:
    scores = torch.tensor(values, dtype=torch.float32)
    keys = sortable(scores)
    assert (keys.unsqueeze(0) < keys.unsqueeze(1)).equal(scores.unsqueeze(0) < scores.unsqueeze(1))
    assert [to_float(int(key)) for key in keys] == scores.tolist()


def test_nan_under_protection_is_refused_too() -> None:
    groups = GroupScores(torch.tensor([math.nan, 1.0]), 1, torch.tensor([True, False]))
    with pytest.raises(ScoreIsNaNError):
        prune_lowest([Segment(0, 0, 0, groups)], [1], OneRank(), CPU)


def test_a_rank_without_segments_exchanges_on_the_run_s_device() -> None:
    """NCCL takes GPU tensors only: the device must not be guessed from segments that are not there."""

    class Recording(OneRank):
        def sum(self, values: Tensor) -> Tensor:
            raise InterruptedError(values.device.type)

    with pytest.raises(InterruptedError, match="meta"):
        prune_lowest([], [0], Recording(), torch.device("meta"))


def test_an_empty_contest_prunes_nothing() -> None:
    selection = prune_lowest([], [0], OneRank(), CPU)
    assert selection.keep == []
    assert selection.thresholds == [None]
