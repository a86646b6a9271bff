"""Which weights compete, and for how many zeros."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.config.pruning import GlobalAllocation, TableAllocation, UniformAllocation
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.allocation import REST, Scope, budget, most_that_may_go, scopes
from sparse_pretrain.pruning.exchange import Extents, Piece, exchange, owners
from sparse_pretrain.pruning.ranks import OneRank
from sparse_pretrain.pruning.structure import Unit
from tests.pruning.lockstep import LockStepRanks, run_ranks

SIZES = {"attention.query": 10, "attention.output": 20, "ffn.up": 30, "pooler": 7}
UNITS = [Unit(name, (name,), size) for name, size in SIZES.items()]


def test_uniform_gives_every_weight_a_scope_of_its_own() -> None:
    found = scopes(UniformAllocation(), 0.9, UNITS, SIZES)
    assert [(scope.units, scope.weights, scope.final) for scope in found] == [
        ((0,), 10, 0.9),
        ((1,), 20, 0.9),
        ((2,), 30, 0.9),
        ((3,), 7, 0.9),
    ]


def test_global_has_one_scope_or_one_for_each_named_group_and_the_rest() -> None:
    (whole,) = scopes(GlobalAllocation(kind="global"), 0.9, UNITS, SIZES)
    assert (whole.units, whole.weights) == ((0, 1, 2, 3), 67)
    grouped = GlobalAllocation(kind="global", groups={"attention": ["query", r"attention\.output"]})
    assert scopes(grouped, 0.9, UNITS, SIZES) == [
        Scope("attention", (0, 1), 30, 0.9),
        Scope(REST, (2, 3), 37, 0.9),
    ]


def test_a_table_gives_the_first_pattern_that_is_found() -> None:
    table = TableAllocation(kind="table", targets={"query": 0.5, "attention": 0.7})
    assert [scope.final for scope in scopes(table, 0.9, UNITS, SIZES)] == [0.5, 0.7, 0.9, 0.9]


@pytest.mark.parametrize(
    ("pattern", "message"), [("[", "not a regular expression"), ("embed", "no prunable")]
)
def test_patterns_that_mean_nothing_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scopes(GlobalAllocation(kind="global", groups={"x": [pattern]}), 0.9, UNITS, SIZES)
    with pytest.raises(UserError, match=message):
        scopes(TableAllocation(kind="table", targets={pattern: 0.5}), 0.9, UNITS, SIZES)


def test_the_budget_is_the_nearest_whole_number_of_weights() -> None:
    scope = Scope("w", (0,), 67, 0.9)
    assert [budget(scope, share) for share in (0.0, 0.5, 0.9)] == [0, 34, 60]


@given(st.integers(1, 10_000), st.integers(0, 100))
def test_the_floor_is_exact(weights: int, percent: int) -> None:
    """Whole percentages must not lose a weight to binary fractions: 30 % kept of 10 is 7 to go."""
    assert most_that_may_go(weights, percent / 100) == weights * (100 - percent) // 100


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 5))
def test_owners_share_the_work(sizes: list[int], ranks: int) -> None:
    units = [Unit(str(index), (str(index),), 1) for index in range(len(sizes))]
    owner = owners(units, {str(index): size for index, size in enumerate(sizes)}, ranks)
    load = [
        sum(size for size, rank in zip(sizes, owner, strict=True) if rank == which) for which in range(ranks)
    ]
    assert max(load) - min(load) <= max(sizes)


@given(st.integers(0, 99), st.integers(1, 4))
def test_masks_come_back_whole_on_every_rank(seed: int, size: int) -> None:
    """Verdicts of odd lengths, cut at odd places, at one bit each."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [torch.Size(shape) for shape in ((3, 7), (1, 1), (5, 5), (2, 9))]
    masks = [torch.rand(shape, generator=generator) > 0.5 for shape in shapes]
    edges = [
        [0, *sorted(torch.randint(0, m.numel() + 1, (size - 1,), generator=generator).tolist()), m.numel()]
        for m in masks
    ]

    def work(ranks: LockStepRanks) -> list[torch.Tensor]:
        rank = ranks.rank
        pieces = [
            Piece(index, edges[index][rank], mask.reshape(-1)[edges[index][rank] : edges[index][rank + 1]])
            for index, mask in enumerate(masks)
            if edges[index][rank] < edges[index][rank + 1]
        ]
        return list(exchange(pieces, shapes, ranks, torch.device("cpu")))

    for found in run_ranks(size, work):
        assert all(mask.equal(expected) for mask, expected in zip(found, masks, strict=True))


def test_extents_say_who_holds_what() -> None:
    extents = Extents.gather(["a", "b"], {"b": (3, 4)}, OneRank(), torch.device("cpu"))
    assert extents.of == [{"a": (0, 0), "b": (3, 4)}]
