"""The driver over weights in memory: schedule, freeze, regrowth, and the same masks at any number of ranks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.ranks import OneRank, Ranks
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.structure import Structure
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.pruning.structures.coupled import CoupledSet, Member
from sparse_pretrain.pruning.verify import BrokenWeightsError
from tests.pruning.lockstep import LockStepRanks, run_ranks
from tests.pruning.memory_weights import MemoryWeights

RAMP = {"target_sparsity": 0.8, "ramp_end": 4, "end": 6, "frequency": 2}
# Two layers with ragged shapes: 2 heads of 3 rows, 7 channels, and a pooler that belongs to neither.
SHAPES = {
    f"{layer}.{name}": torch.Size(shape)
    for layer in ("first", "second")
    for name, shape in (("query", (6, 5)), ("output", (5, 6)), ("up", (7, 5)), ("down", (5, 7)))
} | {"pooler": torch.Size((5, 5))}
STRUCTURES: list[dict[str, Any]] = [
    {"kind": "element"},
    {"kind": "block", "rows": 4, "columns": 1, "pool": "mean"},
    {"kind": "block", "rows": 1, "columns": 4, "pool": "max"},
    {"kind": "block", "rows": 3, "columns": 2, "pool": "l2"},
    {"kind": "n_of_m", "keep": 2, "of": 4},
    {"kind": "n_of_m", "keep": 1, "of": 2},
    {"kind": "rows"},
    {"kind": "columns", "pool": "l2"},
    {"kind": "coupled", "of": ["heads", "channels"]},
]
ALLOCATIONS: list[dict[str, Any]] = [
    {"kind": "uniform"},
    {"kind": "global"},
    {"kind": "global", "groups": {"up": ["up", "down"], "attention": ["query", "output"]}},
    {"kind": "global", "minimum_kept": 0.4},
    {"kind": "table", "targets": {"query|output": 0.3, "down": 0.0}},
]


def random_weights(seed: int, ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {name: (w * 2).round() if ties else w for name, w in weights.items()}


def coupled_sets() -> list[CoupledSet]:
    sets = []
    for layer in ("first", "second"):
        query, output, up, down = (f"{layer}.{name}" for name in ("query", "output", "up", "down"))
        sets.append(CoupledSet(f"{layer} heads", 2, (Member(query, 0), Member(output, 1))))
        sets.append(CoupledSet(f"{layer} channels", 7, (Member(up, 0), Member(down, 1))))
    return sets


def structure_of(section: PruningSection) -> Structure:
    return build_structure(section.structure, coupled_sets())


def make_pruner(weights: MemoryWeights, section: PruningSection, shapes: Any = None) -> Pruner:
    return Pruner(
        section, shapes or SHAPES, weights, structure_of(section), build_scorer(section.scorer), 0.01
    )


def one_weight(**changes: object) -> tuple[MemoryWeights, Pruner]:
    torch.manual_seed(0)
    weights = MemoryWeights({"w": torch.randn(10, 10)}, OneRank())
    section = PruningSection.model_validate(RAMP | changes)
    return weights, make_pruner(weights, section, {"w": torch.Size([10, 10])})


def test_updates_come_when_the_schedule_says_and_freeze_at_the_last() -> None:
    weights, driver = one_weight()
    updates = {step: driver.after_step(step) for step in range(12)}
    assert [step for step, update in updates.items() if update is not None] == [0, 2, 4, 6]
    assert [update.froze for update in updates.values() if update] == [False, False, False, True]
    assert driver.sparsity == pytest.approx(0.8, abs=1e-12)
    assert int((weights.master["w"] == 0).sum()) == 80


def test_a_pruned_weight_grows_back_while_the_ramp_runs() -> None:
    weights, driver = one_weight()
    driver.after_step(2)
    place = int(torch.nonzero(~driver.masks["w"].view(-1))[0])
    weights.master["w"][place] = 100.0
    update = driver.after_step(4)
    assert update is not None
    assert update.layers["w"].regrown == 1
    assert bool(driver.masks["w"].view(-1)[place])


@pytest.mark.parametrize("changes", [{"regrowth": False}, {"regrowth_until": 1}])
def test_without_regrowth_a_pruned_weight_is_gone_at_once(changes: dict[str, object]) -> None:
    weights, driver = one_weight(**changes)
    driver.after_step(2)
    pruned = ~driver.masks["w"].view(-1)
    assert not weights.master["w"][pruned].any()
    weights.master["w"][pruned] = 100.0  # even if something brought it back
    update = driver.after_step(4)
    assert update is not None
    assert update.layers["w"].regrown == 0
    assert not driver.masks["w"].view(-1)[pruned].any()


@pytest.mark.parametrize("packed", [False, True])
def test_masks_and_freeze_survive_a_restart(packed: bool) -> None:
    _, driver = one_weight(masks={"packed": packed})
    for step in range(7):
        driver.after_step(step)
    _, again = one_weight(masks={"packed": packed})
    again.load_state_dict(driver.state_dict(), driver.masks)
    assert again.frozen
    assert again.sparsity == driver.sparsity
    assert again.after_step(6) is None


def test_gradients_of_pruned_weights_become_zero_and_others_stay() -> None:
    weights, driver = one_weight()
    driver.after_step(4)
    driver.before_step()
    assert weights.gradients["w"].equal(driver.masks["w"].view(-1).float())


def test_one_shot_prunes_everything_at_once_and_freezes() -> None:
    weights, driver = one_weight(schedule="one_shot", begin=3, ramp_end=3, end=3)
    assert [step for step in range(8) if driver.after_step(step) is not None] == [3]
    assert int((weights.master["w"] == 0).sum()) == 80


def test_an_update_says_threshold_and_dead_rows() -> None:
    weights = MemoryWeights({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, OneRank())
    section = PruningSection.model_validate(RAMP | {"target_sparsity": 0.5, "schedule": "constant"})
    update = make_pruner(weights, section, {"w": torch.Size([2, 2])}).after_step(0)
    assert update is not None
    assert update.layers["w"].threshold == 2.0
    assert update.layers["w"].dead_rows == 0.5
    assert (update.layers["w"].pruned, update.layers["w"].sparsity, update.sparsity) == (2, 0.5, 0.5)


# --- any structure, any allocation, any number of ranks ----------------------------------------


def valid(structure: dict[str, Any], allocation: dict[str, Any]) -> bool:
    """N:M fixes every weight's share: the recipe refuses a table or a floor beside it."""
    return structure["kind"] != "n_of_m" or allocation in ALLOCATIONS[:3]


COMBINATIONS = [(s, a) for s in STRUCTURES for a in ALLOCATIONS if valid(s, a)]


def section_of(structure: dict[str, Any], allocation: dict[str, Any], **changes: object) -> PruningSection:
    target = 1 - structure["keep"] / structure["of"] if structure["kind"] == "n_of_m" else 0.55
    if structure["kind"] == "coupled" and "groups" in allocation:
        allocation = {"kind": "global", "groups": {"attention": ["query"]}}
    if structure["kind"] == "coupled" and allocation["kind"] == "table":
        allocation = {"kind": "table", "targets": {"query": 0.3}}
    values = RAMP | {"target_sparsity": target, "structure": structure, "allocation": allocation}
    return PruningSection.model_validate(values | changes)


def masks_after(
    weights: dict[str, Tensor], section: PruningSection, ranks: Ranks, each: bool
) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """Prune at steps 0, 2 (mid-ramp), shift the masters, prune at 4; return masks and thresholds."""
    held = MemoryWeights(weights, ranks, each)
    driver = make_pruner(held, section)
    for step in (0, 2):
        driver.after_step(step)
    for name, (start, length) in held.extents.items():
        drift = torch.arange(start, start + length) % 5 * 0.1
        held.master[name] += drift
    update = driver.after_step(4)
    assert update is not None
    assert driver.find_fault() is None
    return dict(driver.masks), {name: layer.threshold for name, layer in update.layers.items()}


@pytest.mark.parametrize(("structure", "allocation"), COMBINATIONS)
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.booleans(), st.booleans())
def test_the_masks_do_not_depend_on_the_number_of_ranks(
    structure: dict[str, Any], allocation: dict[str, Any], seed: int, ties: bool, each: bool, regrowth: bool
) -> None:
    weights = random_weights(seed, ties)
    section = section_of(structure, allocation, regrowth=regrowth)
    expected, thresholds = masks_after(weights, section, OneRank(), each)
    for size in (2, 3):

        def work(ranks: LockStepRanks) -> tuple[dict[str, Tensor], dict[str, float | None]]:
            return masks_after(weights, section, ranks, each)

        for masks, found in run_ranks(size, work):
            assert masks.keys() == expected.keys()
            assert all(masks[name].equal(expected[name]) for name in masks)
            assert found == thresholds


@pytest.mark.parametrize(("structure", "allocation"), COMBINATIONS)
@settings(max_examples=2, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_one_rank_equals_sorting_all_groups(
    structure: dict[str, Any], allocation: dict[str, Any], seed: int, ties: bool
) -> None:
    """Against a plain sort of every scope's groups: the longest prefix that fits the budget goes."""
    weights = random_weights(seed, ties)
    section = section_of(structure, allocation, schedule="constant")
    held = MemoryWeights(weights, OneRank())
    driver = make_pruner(held, section)
    driver.after_step(0)
    shapes_of = structure_of(section)
    units = list(shapes_of.units(SHAPES))
    pooled = [shapes_of.pool(unit, lambda name: weights[name].abs()) for unit in units]
    scope_of = [naive_scope(section, unit.members) for unit in units]
    keep = [torch.ones(unit.groups, dtype=torch.bool) for unit in units]
    for scope in dict.fromkeys(scope_of):
        inside = [index for index, name in enumerate(scope_of) if name == scope]
        total = sum(SHAPES[member].numel() for index in inside for member in units[index].members)
        left = round(naive_target(section, units[inside[0]].members) * total)
        order = sorted(
            (float(pooled[unit].scores[group]), unit, group)
            for unit in inside
            for group in range(units[unit].groups)
        )
        room = {unit: unit_room(section, units[unit].members) for unit in inside}
        floor_order: dict[int, int] = dict(room)
        blocked: set[int] = set()
        for _, unit, group in order:
            sizes, protected = pooled[unit].sizes, pooled[unit].protected
            size = int(sizes[group]) if isinstance(sizes, Tensor) else sizes
            if protected is not None and bool(protected[group]):
                continue
            if unit in blocked or size > floor_order[unit]:
                blocked.add(unit)
                continue
            floor_order[unit] -= size
            if size > left:
                break
            left -= size
            keep[unit][group] = False
    for unit, verdict in zip(units, keep, strict=True):
        for name, mask in shapes_of.expand(unit, verdict).items():
            assert driver.masks[name].equal(mask), name


def naive_scope(section: PruningSection, members: tuple[str, ...]) -> str:
    allocation = section.allocation
    if allocation.kind != "global":
        return members[0]
    for name, patterns in allocation.groups.items():
        if any(pattern in member for pattern in patterns for member in members):
            return name
    return "rest"


def naive_target(section: PruningSection, members: tuple[str, ...]) -> float:
    if section.allocation.kind == "table":
        for pattern, share in section.allocation.targets.items():
            if any(name in member for name in pattern.split("|") for member in members):
                return share
    return section.target_sparsity


def unit_room(section: PruningSection, members: tuple[str, ...]) -> int:
    size = sum(SHAPES[member].numel() for member in members)
    return int((1 - section.allocation.minimum_kept) * size + 1e-9)


def test_a_floor_keeps_the_weakest_layer_alive() -> None:
    weights = random_weights(0, ties=False)
    weights["first.up"] *= 1e-6
    for minimum, kept in ((0.0, 0), (0.2, 7)):
        allocation = {"kind": "global", "minimum_kept": minimum}
        driver = make_pruner(
            MemoryWeights(weights, OneRank()),
            section_of({"kind": "element"}, allocation, schedule="constant"),
        )
        driver.after_step(0)
        assert int(driver.masks["first.up"].sum()) == kept
        total = sum(shape.numel() for shape in SHAPES.values())
        assert sum(int((~driver.masks[name]).sum()) for name in SHAPES) == round(0.55 * total)


# --- faults ---------------------------------------------------------------------------------------


def test_a_broken_layer_is_named() -> None:
    weights, driver = one_weight()
    for step in range(7):
        driver.after_step(step)
    assert driver.find_fault() is None
    place = int(torch.nonzero(~driver.masks["w"].view(-1))[0])
    weights.master["w"][place] = 1e-9
    assert (driver.find_fault() or "").startswith("w: 1 weights outside the frozen mask are not zero")
    weights.master["w"][place] = 0.0
    weights.copies["w"].view(-1)[place] = -1e-30
    assert (driver.find_fault() or "").startswith("w: 1 weights outside the mask are not zero in the copy")


@pytest.mark.parametrize(
    "structure", [{"kind": "element"}, {"kind": "n_of_m", "keep": 2, "of": 4}, {"kind": "rows"}]
)
def test_a_nan_weight_stops_a_later_update_with_its_layer_s_name(structure: dict[str, Any]) -> None:
    """On every rank, although the copies of other layers are dense between step and update."""
    weights = random_weights(0, ties=False)

    def work(ranks: LockStepRanks) -> str:
        held = MemoryWeights(weights, ranks)
        driver = make_pruner(held, section_of(structure, {"kind": "uniform"}))
        driver.after_step(2)
        held.step()
        if held.extents["pooler"][1]:
            held.master["pooler"][0] = torch.nan
        with pytest.raises(BrokenWeightsError) as caught:
            driver.after_step(4)
        return str(caught.value)

    for message in run_ranks(2, work):
        assert message.startswith("pooler: ")
        assert message.endswith("weights are NaN or infinite")


def test_a_scorer_that_returns_something_else_is_refused() -> None:
    _, driver = one_weight()
    driver.scorer.score = lambda part: part.master.double()  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="w: a scorer must return float32"):
        driver.after_step(2)


def test_movement_does_not_see_a_step_that_will_be_skipped() -> None:
    weights, driver = one_weight(scorer={"kind": "movement"})
    driver.before_step()
    seen = [tensor.clone() for _, _, _, tensor in driver.scorer.tensors()]
    weights.gradients["w"] = torch.ones(100)
    weights.gradients["embeddings"] = torch.tensor([torch.inf])
    driver.before_step()
    (after,) = (tensor for _, _, _, tensor in driver.scorer.tensors())
    assert after.equal(seen[0])


def test_another_scorer_does_not_go_on_with_saved_state() -> None:
    _, driver = one_weight(scorer={"kind": "movement"})
    _, other = one_weight()
    with pytest.raises(ValueError, match="saved with scorer Movement, the recipe has Magnitude"):
        other.load_state_dict(driver.state_dict(), driver.masks)


def test_other_masks_are_not_taken_over() -> None:
    _, driver = one_weight()
    with pytest.raises(ValueError, match="not of the weights"):
        driver.load_state_dict(driver.state_dict(), MaskSet.dense({"v": torch.Size([10, 10])}))
