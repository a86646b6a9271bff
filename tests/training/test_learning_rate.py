"""Golden values of the learning-rate factors."""

import pytest

from sparse_pretrain.training.learning_rate import Rewind, linear_factor, rewinding_factor

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
