"""Schedules: hand-computed values of every shape, and what must hold at every step."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.schedule import (
    Schedule,
    Shape,
    is_update_step,
    may_regrow,
    target_sparsity,
    weight_sparsity,
)

SHAPES: tuple[Shape, ...] = ("cubic", "linear", "exponential", "table", "one_shot", "constant")
RAMPS: tuple[Shape, ...] = ("cubic", "linear", "exponential")
PAPER = Schedule("cubic", begin=0, ramp_end=50_000, end=80_000, frequency=1_000, initial=0.0, final=0.85)
# 0.85 (1 - (1 - t / 50,000)^3), by hand with fractions: for example t = 25,000 is 0.85 x 7/8.
GOLDEN = {
    0: 0.0,
    1_000: 0.0499868,
    2_000: 0.0979744,
    5_000: 0.23035,
    7_500: 0.32799375,
    10_000: 0.4148,
    12_500: 0.49140625,
    15_000: 0.55845,
    17_500: 0.61656875,
    20_000: 0.6664,
    22_500: 0.70858125,
    25_000: 0.74375,
    27_500: 0.77254375,
    30_000: 0.7956,
    35_000: 0.82705,
    40_000: 0.8432,
    45_000: 0.84915,
    49_000: 0.8499932,
    50_000: 0.85,
    80_000: 0.85,
}
# From 20 to 60 steps, 0.5 to 0.9375; by hand at 19 (nothing yet), 20, 30 (a quarter), 40, 50, 60, 99.
# Exponential: the density falls from 1/2 to 1/16, halved three times on the way: 2^-(1 + 3 x).
BY_HAND: dict[Shape, list[float]] = {
    "cubic": [0.0, 0.5, 0.9375 - 0.4375 * 27 / 64, 0.9375 - 0.4375 / 8, 0.9375 - 0.4375 / 64, 0.9375, 0.9375],
    "linear": [0.0, 0.5, 0.609375, 0.71875, 0.828125, 0.9375, 0.9375],
    "exponential": [0.0, 0.5, 1 - 2**-1.75, 1 - 2**-2.5, 1 - 2**-3.25, 0.9375, 0.9375],
    "table": [0.0, 0.5, 0.6, 0.6, 0.6, 0.9375, 0.9375],
    "one_shot": [0.0] + [0.9375] * 6,
    "constant": [0.0] + [0.9375] * 6,
}
TABLE = ((25, 0.6), (60, 0.9375))


def schedule(shape: Shape, **changes: Any) -> Schedule:
    values = {"begin": 20, "ramp_end": 60, "end": 90, "frequency": 10, "initial": 0.5, "final": 0.9375}
    table = TABLE if shape == "table" else ()
    return Schedule(**({"shape": shape, "table": table, **values} | changes))


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule that a recipe could ask for."""
    shape = draw(st.sampled_from(SHAPES))
    begin, length = draw(st.integers(0, 500)), draw(st.integers(1, 500))
    initial = draw(st.floats(0, 0.99))
    final = draw(st.floats(initial, 0.999))
    table: tuple[tuple[int, float], ...] = ()
    if shape == "table":
        steps = sorted(draw(st.sets(st.integers(begin, begin + length - 1), max_size=4)))
        values = sorted(draw(st.floats(initial, final)) for _ in steps)
        table = (*zip(steps, values, strict=True), (begin + length, final))
    return Schedule(shape, begin, begin + length, begin + 2 * length, 7, initial, final, table)


@pytest.mark.parametrize(("step", "expected"), GOLDEN.items())
def test_golden_values_of_the_papers_ramp(step: int, expected: float) -> None:
    assert target_sparsity(step, PAPER) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_by_hand(shape: Shape) -> None:
    targets = [target_sparsity(step, schedule(shape)) for step in (19, 20, 30, 40, 50, 60, 99)]
    assert targets == pytest.approx(BY_HAND[shape], abs=1e-12)


def test_exponential_keeps_the_same_share_of_what_is_left_every_step() -> None:
    shape = schedule("exponential")
    density = [1 - target_sparsity(step, shape) for step in range(20, 61)]
    ratios = [after / before for before, after in pairwise(density)]
    assert ratios == pytest.approx([0.125 ** (1 / 40)] * 40, rel=1e-12)


@given(schedules(), st.integers(0, 1600))
def test_targets_never_fall_and_stay_between_their_ends(any_schedule: Schedule, step: int) -> None:
    here, next_one = target_sparsity(step, any_schedule), target_sparsity(step + 1, any_schedule)
    assert here <= next_one + 1e-12
    if step < any_schedule.begin:
        assert here == 0.0
    else:
        assert any_schedule.initial - 1e-12 <= here <= any_schedule.final + 1e-12


@given(schedules())
def test_targets_at_both_ends(any_schedule: Schedule) -> None:
    at_once = any_schedule.shape in ("one_shot", "constant")
    if any_schedule.shape != "table":
        start = any_schedule.final if at_once else any_schedule.initial
        assert target_sparsity(any_schedule.begin, any_schedule) == pytest.approx(start, abs=1e-12)
    # To the last bit: round(target x size) must not lose a weight at the end of the ramp.
    assert target_sparsity(any_schedule.ramp_end, any_schedule) == any_schedule.final
    assert target_sparsity(any_schedule.end, any_schedule) == any_schedule.final


def progress(step: int, schedule: Schedule) -> float:
    """The share of the rise that is done, seen through a weight that ends elsewhere."""
    final = (1.0 + schedule.final) / 2.0
    if step < schedule.begin:
        return 0.0
    return (weight_sparsity(step, schedule, final) - schedule.initial) / (final - schedule.initial)


@given(schedules(), st.integers(0, 1600))
def test_progress_is_the_share_of_the_rise(any_schedule: Schedule, step: int) -> None:
    done = progress(step, any_schedule)
    assert -1e-12 <= done <= progress(step + 1, any_schedule) + 1e-12 <= 1.0 + 1e-12
    if step >= any_schedule.begin and any_schedule.shape not in ("one_shot", "constant"):
        rise = any_schedule.final - any_schedule.initial
        target = target_sparsity(step, any_schedule)
        assert any_schedule.initial + rise * done == pytest.approx(target, abs=1e-12)


@given(schedules(), st.integers(0, 1600), st.floats(0, 0.999))
def test_a_weight_of_its_own_rises_to_its_own_end(any_schedule: Schedule, step: int, final: float) -> None:
    here = weight_sparsity(step, any_schedule, final)
    assert -1e-12 <= here <= weight_sparsity(step + 1, any_schedule, final) + 1e-12 <= final + 2e-12
    assert weight_sparsity(any_schedule.end, any_schedule, final) == final
    same = weight_sparsity(step, any_schedule, any_schedule.final)
    assert same == target_sparsity(step, any_schedule)


def test_a_weight_of_its_own_by_hand() -> None:
    linear = schedule("linear")
    # Half-way from 0.5 to 0.8; one that ends below the initial 0.5 stands at its end all along.
    assert weight_sparsity(40, linear, 0.8) == pytest.approx(0.65)
    assert [weight_sparsity(step, linear, 0.3) for step in (19, 20, 40, 99)] == [0.0, 0.3, 0.3, 0.3]
    # The table has done 0.1 of 0.4375 at step 30.
    assert weight_sparsity(30, schedule("table"), 0.8) == pytest.approx(0.5 + 0.3 * 0.1 / 0.4375)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("cubic", 0.875), ("linear", 0.5), ("exponential", 0.5), ("table", 1.0), ("constant", 1.0)],
)
def test_progress_where_nothing_rises(shape: Shape, expected: float) -> None:
    """Half-way of a schedule from 0.9 to 0.9: a weight of its own must still know how far it is."""
    table = ((60, 0.9),) if shape == "table" else ()
    flat = schedule(shape, initial=0.9, final=0.9, table=table)
    assert progress(40, flat) == pytest.approx(expected)
    assert target_sparsity(40, flat) == 0.9


def test_exponential_does_not_lose_digits_over_a_tiny_rise() -> None:
    tiny = schedule("exponential", initial=0.9, final=0.9 + 1e-13)
    assert progress(40, tiny) == pytest.approx(0.5, abs=1e-9)


def test_updates_come_at_begin_and_every_so_often_up_to_end() -> None:
    uneven = schedule("cubic", end=95)
    assert [step for step in range(200) if is_update_step(step, uneven)] == [20, 30, 40, 50, 60, 70, 80, 90]
    assert uneven.last_update == 90
    once = schedule("one_shot", ramp_end=20, end=20)
    assert [step for step in range(200) if is_update_step(step, once)] == [20]
    assert once.last_update == 20


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [20, 30, 40, 50, 60, 70, 80, 90]),
        ({"regrowth": False}, []),
        ({"regrowth_until": 50}, [20, 30, 40, 50]),
        ({"regrowth_until": 49}, [20, 30, 40]),
        ({"regrowth_until": 0}, []),
    ],
)
def test_weights_come_back_at_updates_until_they_may_not(
    changes: dict[str, Any], expected: list[int]
) -> None:
    limited = schedule("linear", **changes)
    assert [step for step in range(200) if may_regrow(step, limited)] == expected


def section(**values: Any) -> PruningSection:
    return PruningSection.model_validate({"target_sparsity": 0.8, "frequency": 5} | values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"ramp_end": 10, "end": 20, "initial_sparsity": 0.2, "regrowth_until": 7},
            Schedule("cubic", 0, 10, 20, 5, 0.2, 0.8, (), True, 7),
        ),
        (
            {"schedule": "table", "table": {10: 0.8, 5: 0.4}, "begin": 5, "end": 15},
            Schedule("table", 5, 10, 15, 5, 0.0, 0.8, ((5, 0.4), (10, 0.8))),
        ),
        ({"schedule": "one_shot", "begin": 5}, Schedule("one_shot", 5, 5, 5, 5, 0.0, 0.8)),
        (
            {"schedule": "constant", "end": 20, "regrowth": False},
            Schedule("constant", 0, 0, 20, 5, 0.0, 0.8, (), False),
        ),
    ],
)
def test_a_recipes_section_says_it_all(values: dict[str, Any], expected: Schedule) -> None:
    made = section(**values)
    assert Schedule.of(made) == expected
    assert Schedule.of(made).last_update == made.last_update


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"table": {5: 0.1, 10: 0.8}, "initial_sparsity": 0.2}, "lies below initial_sparsity = 0.2"),
        ({"table": {5: 0.4, 10: 0.8}, "ramp_end": 5}, "leave it out, the table's last step is 10"),
    ],
)
def test_a_table_that_would_fall_or_end_elsewhere_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(schedule="table", end=20, **values)
