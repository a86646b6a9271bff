"""The cubic ramp: golden values, and what must hold at every step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.pruning.schedule import Ramp, cubic_sparsity

PAPER = Ramp(start=0, end=50_000, initial=0.0, final=0.85)
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


@pytest.mark.parametrize(("step", "expected"), GOLDEN.items())
def test_golden_values_of_the_papers_ramp(step: int, expected: float) -> None:
    assert cubic_sparsity(step, PAPER) == pytest.approx(expected, abs=1e-9)


@given(
    start=st.integers(0, 1000),
    length=st.integers(1, 1000),
    initial=st.floats(0, 0.5),
    rise=st.floats(0, 0.49),
    step=st.integers(0, 3000),
)
def test_never_falls_and_stays_between_its_ends(
    start: int, length: int, initial: float, rise: float, step: int
) -> None:
    ramp = Ramp(start, start + length, initial, initial + rise)
    here, next_one = cubic_sparsity(step, ramp), cubic_sparsity(step + 1, ramp)
    assert initial - 1e-12 <= here <= next_one + 1e-12 <= initial + rise + 2e-12
