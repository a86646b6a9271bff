"""Groups cover every weight once, pool what a plain loop pools, and come back as whole groups."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from sparse_pretrain.config.pruning import Pool, StructureSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.structure import GroupScores, Structure, Unit
from sparse_pretrain.pruning.structures.block import Blocks
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.pruning.structures.coupled import Coupled, CoupledSet, Member
from sparse_pretrain.pruning.structures.element import Element
from sparse_pretrain.pruning.structures.lines import Lines
from sparse_pretrain.pruning.structures.n_of_m import NofM

POOLS: tuple[Pool, ...] = ("mean", "max", "l2")
Places = list[tuple[str, int, int]]


def reference_groups(structure: Structure, unit: Unit) -> list[Places]:
    """The (weight, row, column) places of every group, in order, spelled out one by one."""
    (name, *_), ((rows, columns), *_) = unit.members, unit.shapes
    if isinstance(structure, Element | NofM):
        return [[(name, row, column)] for row in range(rows) for column in range(columns)]
    if isinstance(structure, Lines):
        if structure.direction == "rows":
            return [[(name, row, column) for column in range(columns)] for row in range(rows)]
        return [[(name, row, column) for row in range(rows)] for column in range(columns)]
    if isinstance(structure, Blocks):
        return [
            [
                (name, row, column)
                for row in range(top, min(top + structure.rows, rows))
                for column in range(left, min(left + structure.columns, columns))
            ]
            for top in range(0, rows, structure.rows)
            for left in range(0, columns, structure.columns)
        ]
    # The coupled sets of these tests: rows of the first weights, columns of the last.
    groups: list[Places] = [[] for _ in range(unit.groups)]
    for member, shape in zip(unit.members, unit.shapes, strict=True):
        axis = 1 if member == unit.members[-1] else 0
        for row in range(shape[0]):
            for column in range(shape[1]):
                line = (row, column)[axis]
                groups[line * unit.groups // shape[axis]].append((member, row, column))
    return groups


def reference_pool(values: Sequence[float], pool: Pool) -> float:
    if pool == "max":
        return max(values)
    if pool == "mean":
        return math.fsum(values) / len(values)
    return math.sqrt(math.fsum(value * value for value in values) / len(values))


def two_heads(size: int, width: int, heads: int, pool: Pool) -> tuple[Structure, dict[str, torch.Size]]:
    members = (Member("q", 0), Member("v", 0), Member("o", 1))
    shapes = {
        "q": torch.Size([heads * size, width]),
        "v": torch.Size([heads * size, width + 1]),
        "other": torch.Size([3, 3]),
        "o": torch.Size([width, heads * size]),
    }
    return Coupled([CoupledSet("layer.heads", heads, members)], pool), shapes


@st.composite
def cases(draw: st.DrawFn) -> tuple[Structure, dict[str, torch.Size]]:
    """A structure and shapes of weights, ragged more often than not."""
    rows, columns = draw(st.integers(1, 13)), draw(st.integers(1, 13))
    shapes = {"w": torch.Size([rows, columns])}
    pool = draw(st.sampled_from(POOLS))
    kind = draw(st.sampled_from(["element", "block", "n_of_m", "lines", "coupled"]))
    if kind == "block":
        return Blocks(draw(st.integers(1, 5)), draw(st.integers(1, 5)), pool), shapes
    if kind == "n_of_m":
        of = draw(st.integers(2, 6))
        return NofM(draw(st.integers(1, of - 1)), of), shapes
    if kind == "lines":
        return Lines(draw(st.sampled_from(["rows", "columns"])), pool), shapes
    if kind == "coupled":
        return two_heads(draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 4)), pool)
    return Element(), shapes


def random_scores(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # Few distinct values in half of the cases: ties.
    return {
        name: torch.randint(0, 4, shape, generator=generator).float()
        if seed % 2
        else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


def pooled(
    structure: Structure, shapes: Mapping[str, torch.Size], scores: Mapping[str, Tensor]
) -> Iterator[tuple[Unit, GroupScores]]:
    for unit in structure.units(shapes):
        asked: list[str] = []

        def give(name: str, asked: list[str] = asked) -> Tensor:
            asked.append(name)
            return scores[name].clone()

        yield unit, structure.pool(unit, give)
        assert asked == list(unit.members)


@given(case=cases(), seed=st.integers(0, 99))
def test_pooling_equals_a_plain_loop_and_sizes_add_up(
    case: tuple[Structure, dict[str, torch.Size]], seed: int
) -> None:
    structure, shapes = case
    scores = random_scores(shapes, seed)
    for unit, found in pooled(structure, shapes, scores):
        groups = reference_groups(structure, unit)
        pool: Pool = getattr(structure, "pooling", "max")
        expected = [
            reference_pool([float(scores[name][row, column]) for name, row, column in group], pool)
            for group in groups
        ]
        assert found.scores.dtype == torch.float32
        assert found.scores.tolist() == pytest.approx(expected, rel=1e-6)
        sizes = [len(group) for group in groups]
        assert unit.groups == len(groups)
        if isinstance(found.sizes, int):
            assert sizes == [found.sizes] * len(groups)
        else:
            assert found.sizes.dtype == torch.int64
            assert found.sizes.tolist() == sizes
        assert sum(sizes) == sum(shape.numel() for shape in unit.shapes)
        assert structure.groups_are_weights == isinstance(structure, Element | NofM)


@given(case=cases(), seed=st.integers(0, 99))
def test_every_group_is_kept_or_pruned_whole(
    case: tuple[Structure, dict[str, torch.Size]], seed: int
) -> None:
    structure, shapes = case
    for unit in structure.units(shapes):
        keep = torch.rand(unit.groups, generator=torch.Generator().manual_seed(seed)) > 0.5
        masks = structure.expand(unit, keep)
        assert list(masks) == list(unit.members)
        for shape, mask in zip(unit.shapes, masks.values(), strict=True):
            assert mask.shape == shape
            assert mask.dtype == torch.bool
            # No broadcast view: who changes one place must not change a whole line.
            assert mask.is_contiguous()
        for verdict, group in zip(keep.tolist(), reference_groups(structure, unit), strict=True):
            assert {bool(masks[name][row, column]) for name, row, column in group} == {verdict}


@given(case=cases(), seed=st.integers(0, 99))
def test_masks_pool_back_to_the_verdicts(case: tuple[Structure, dict[str, torch.Size]], seed: int) -> None:
    structure, shapes = case
    for unit in structure.units(shapes):
        keep = torch.rand(unit.groups, generator=torch.Generator().manual_seed(seed)) > 0.5
        masks = {name: mask.float() for name, mask in structure.expand(unit, keep).items()}
        again = structure.pool(unit, masks.__getitem__)
        assert again.scores.tolist() == keep.float().tolist()


def test_blocks_of_ragged_edges_by_hand() -> None:
    weight = torch.arange(15, dtype=torch.float32).reshape(3, 5)
    structure = Blocks(2, 2, "mean")
    (unit,) = structure.units({"w": weight.shape})
    found = structure.pool(unit, lambda _: weight)
    assert found.scores.tolist() == [3, 5, 6.5, 10.5, 12.5, 14]
    assert isinstance(found.sizes, Tensor)
    assert found.sizes.tolist() == [4, 4, 2, 2, 2, 1]
    mask = structure.expand(unit, torch.tensor([True, False, True, False, True, False]))["w"]
    assert mask.int().tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0]]


def test_l2_compares_blocks_of_different_sizes_by_their_weights() -> None:
    """All weights alike: no block may be pruned first because it lies at an edge."""
    structure = Blocks(4, 4, "l2")
    (unit,) = structure.units({"w": torch.Size([6, 7])})
    assert structure.pool(unit, lambda _: torch.full((6, 7), 0.5)).scores.tolist() == [0.5] * 4


def test_mean_of_many_small_numbers_beside_a_large_one_is_exact() -> None:
    """In float32 each of them would vanish in the sum."""
    values = torch.full((1, 2**16 + 1), 2.0**-9)
    values[0, 0] = 2.0**16
    structure = Lines("rows")
    (unit,) = structure.units({"w": values.shape})
    expected = np.float32((2.0**16 + 2.0**7) / (2**16 + 1))
    assert structure.pool(unit, lambda _: values).scores.item() == expected


@given(
    keep=st.integers(1, 5),
    more=st.integers(1, 4),
    rows=st.integers(1, 5),
    columns=st.integers(1, 17),
    seed=st.integers(0, 99),
)
def test_pruning_all_that_is_unprotected_gives_the_pattern(
    keep: int, more: int, rows: int, columns: int, seed: int
) -> None:
    of = keep + more
    shapes = {"w": torch.Size([rows, columns])}
    weight = random_scores(shapes, seed)["w"]
    structure = NofM(keep, of)
    (unit,) = structure.units(shapes)
    found = structure.pool(unit, lambda _: weight)
    assert found.protected is not None
    mask = structure.expand(unit, found.protected)["w"]
    for row in range(rows):
        for start in range(0, columns, of):
            run = weight[row, start : start + of].tolist()
            # Pruned in the order of (score, index): of equal ones the earlier goes.
            order = [place for _, place in sorted(zip(run, range(len(run)), strict=True))]
            kept = sorted(order[max(0, len(run) - keep) :])
            assert torch.nonzero(mask[row, start : start + of]).flatten().tolist() == kept


def test_runs_longer_than_a_byte_counts() -> None:
    weight = torch.arange(600, dtype=torch.float32).reshape(2, 300)
    structure = NofM(1, 300)
    (unit,) = structure.units({"w": weight.shape})
    found = structure.pool(unit, lambda _: weight)
    assert found.protected is not None
    assert torch.nonzero(found.protected).flatten().tolist() == [299, 599]


@pytest.mark.parametrize("pool", POOLS)
def test_one_member_at_a_time_is_in_memory(pool: Pool) -> None:
    structure, shapes = two_heads(2, 3, 4, pool)
    (unit,) = structure.units(shapes)
    given_out: list[weakref.ref[Tensor]] = []

    def give(name: str) -> Tensor:
        assert all(scores() is None for scores in given_out)
        scores = torch.ones(shapes[name])
        given_out.append(weakref.ref(scores))
        return scores

    structure.pool(unit, give)
    assert len(given_out) == 3


def test_weights_outside_the_sets_are_no_unit() -> None:
    structure, shapes = two_heads(2, 3, 4, "mean")
    assert [unit.members for unit in structure.units(shapes)] == [("q", "v", "o")]


def test_coupled_sets_must_fit_the_weights() -> None:
    structure, shapes = two_heads(2, 3, 4, "mean")
    with pytest.raises(UserError, match=r"layer\.heads needs v, which is not prunable"):
        structure.units({name: shape for name, shape in shapes.items() if name != "v"})
    with pytest.raises(UserError, match=r"v of shape \[7, 3\] cannot be cut into the 4 equal groups"):
        structure.units(shapes | {"v": torch.Size([7, 3])})
    with pytest.raises(ValueError, match="q is in more than one coupled set"):
        Coupled([CoupledSet("a", 1, (Member("q", 0),)), CoupledSet("b", 1, (Member("q", 1),))])


@pytest.mark.parametrize("structure", [Blocks(2, 2), NofM(2, 4), Lines("rows"), Lines("columns")])
def test_only_matrices_are_cut(structure: Structure) -> None:
    with pytest.raises(UserError, match=r"norm\.weight has shape \[8\], not \[outputs, inputs\]"):
        structure.units({"norm.weight": torch.Size([8])})


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"kind": "element"}, Element),
        ({"kind": "block", "rows": 4, "columns": 1, "pool": "l2"}, Blocks(4, 1, "l2")),
        ({"kind": "n_of_m", "keep": 1, "of": 2}, NofM(1, 2)),
        ({"kind": "rows", "pool": "max"}, Lines("rows", "max")),
        ({"kind": "columns"}, Lines("columns", "mean")),
        ({"kind": "coupled", "pool": "l2"}, Coupled),
    ],
)
def test_recipes_build_what_they_say(section: dict[str, object], expected: object) -> None:
    built = build_structure(TypeAdapter(StructureSection).validate_python(section))
    assert isinstance(built, expected) if isinstance(expected, type) else built == expected
