"""Golden values of the learning-rate factors."""

from typing import Any

import pytest
from pydantic import ValidationError

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.learning_rate import (
    Rewind,
    cyclic_factor,
    learning_rate_at,
    linear_factor,
    rewinding_factor,
)

# The paper's run: N = 100,000, W = 1,000, ramp 0 to 50,000, interval 1,000, so D = 50,000 and
# D - W = 49,000. By hand: inside the ramp (50,000 - t mod 1,000) / 49,000, after it (100,000 - t) / 49,000.
PAPER = Rewind(start=0, end=50_000, interval=1_000)
GOLDEN = {
    0: 0.0,
    1: 0.001,
    500: 0.5,
    999: 0.999,
    1_000: 50_000 / 49_000,
    1_001: 49_999 / 49_000,
    1_500: 49_500 / 49_000,
    1_999: 49_001 / 49_000,
    2_000: 50_000 / 49_000,
    10_250: 49_750 / 49_000,
    25_999: 49_001 / 49_000,
    26_000: 50_000 / 49_000,
    49_999: 49_001 / 49_000,
    50_000: 50_000 / 49_000,
    50_001: 49_999 / 49_000,
    51_000: 1.0,
    75_500: 0.5,
    90_200: 0.2,
    99_999: 1 / 49_000,
    100_000: 0.0,
}


@pytest.mark.parametrize(("step", "expected"), GOLDEN.items())
def test_rewinding_of_the_papers_run(step: int, expected: float) -> None:
    assert rewinding_factor(step, 1_000, 100_000, PAPER) == pytest.approx(expected, abs=1e-12)


def test_rewinding_of_a_ramp_that_starts_later() -> None:
    # N = 100, W = 10, ramp 20 to 60, interval 10: D = 60, D - W = 50.
    ramp = Rewind(start=20, end=60, interval=10)
    factors = {step: rewinding_factor(step, 10, 100, ramp) for step in (10, 19, 20, 25, 29, 30, 59, 60, 99)}
    assert factors == pytest.approx(
        {10: 1.0, 19: 0.82, 20: 0.8, 25: 0.7, 29: 0.62, 30: 0.8, 59: 0.62, 60: 0.8, 99: 0.02}
    )


def test_linear() -> None:
    factors = [linear_factor(step, 10, 110) for step in (0, 5, 10, 60, 110, 200)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])


def test_cyclic_falls_to_its_floor_and_starts_again() -> None:
    # oBERT's 5e-4 to 5e-6: cycles of 100 steps, each step takes 0.99 / 100 off.
    factors = {step: cyclic_factor(step, 0, 100, 0.01) for step in (0, 1, 50, 99, 100, 150, 299, 300)}
    assert factors == pytest.approx(
        {0: 1.0, 1: 0.9901, 50: 0.505, 99: 0.0199, 100: 1.0, 150: 0.505, 299: 0.0199, 300: 1.0}
    )


def test_a_warm_up_scales_only_the_start_of_the_first_cycle() -> None:
    factors = {step: cyclic_factor(step, 20, 100, 0.0) for step in (0, 10, 19, 20, 100, 110)}
    assert factors == pytest.approx({0: 0.0, 10: 0.45, 19: 0.81 * 19 / 20, 20: 0.8, 100: 1.0, 110: 0.9})


def recipe(**sections: Any) -> TrainRecipe:
    values: dict[str, Any] = {
        "output": "run",
        "steps": 100,
        "model": {"config": {"model_type": "bert"}},
        "data": {"path": "data"},
        "optimizer": {"learning_rate": 2e-3},
    }
    return TrainRecipe.model_validate(values | sections)


def test_a_recipe_asks_for_cycles_and_gets_rates() -> None:
    cycles = recipe(learning_rate={"kind": "cyclic", "warmup": 0, "cycle_steps": 20, "final_factor": 0.5})
    rates = [learning_rate_at(step, cycles) for step in (0, 10, 19, 20, 99)]
    assert rates == pytest.approx([2e-3, 1.5e-3, 1.05e-3, 2e-3, 1.05e-3])


REWINDING = {"learning_rate": {"kind": "rewinding", "warmup": 0}}
RAMPS = {
    "cubic": {"ramp_end": 60, "end": 60},
    "linear": {"ramp_end": 60, "end": 60},
    "exponential": {"ramp_end": 60, "end": 60},
    "table": {"table": {20: 0.3, 60: 0.8}, "end": 60},
}


@pytest.mark.parametrize("schedule", RAMPS)
def test_every_ramp_rewinds_alike(schedule: str) -> None:
    """N = 100, no warm-up, ramp 20 to 60, interval 10: the factors of the ramp above that starts later."""
    pruning = {"schedule": schedule, "target_sparsity": 0.8, "begin": 20, "frequency": 10, **RAMPS[schedule]}
    rewound = recipe(**REWINDING, pruning=pruning)
    factors = [learning_rate_at(step, rewound) / 2e-3 for step in (19, 20, 29, 30, 59, 60, 99)]
    assert factors == pytest.approx([41 / 60, 40 / 60, 31 / 60, 40 / 60, 31 / 60, 40 / 60, 1 / 60])


@pytest.mark.parametrize(
    "pruning",
    [
        {"schedule": "one_shot", "begin": 10},
        {"schedule": "constant", "end": 60},
        {"schedule": "table", "table": {10: 0.8}, "begin": 10, "end": 60},
    ],
    ids=lambda pruning: pruning["schedule"],
)
def test_a_schedule_without_a_ramp_cannot_be_rewound(pruning: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"pruning.schedule = {pruning['schedule']} has none"):
        recipe(**REWINDING, pruning={"target_sparsity": 0.8, "frequency": 10, **pruning})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "cyclic"}, "kind = cyclic needs cycle_steps"),
        ({"kind": "linear", "cycle_steps": 10}, "need kind = cyclic, not linear"),
        ({"kind": "rewinding", "final_factor": 0.1}, "need kind = cyclic, not rewinding"),
        ({"kind": "cyclic", "cycle_steps": 101}, "cycle_steps = 101 lies beyond steps = 100"),
        ({"kind": "cyclic", "cycle_steps": 20, "warmup": 0.2}, "must end within the first cycle"),
    ],
)
def test_cycles_that_do_not_fit_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(learning_rate=section)
