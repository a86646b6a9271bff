"""The sum of squares against the same in double precision."""

import math

import pytest
import torch
from torch import Tensor

from sparse_pretrain.training.gradient_norm import BLOCK, sum_of_squares


def gradients(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, generator=generator) * 1e-3).to(dtype) for size in (3, 5 * BLOCK + 7, BLOCK)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_sum_in_double_precision(dtype: torch.dtype) -> None:
    expected = sum(float(one.double().square().sum()) for one in gradients(dtype))
    found = sum_of_squares(gradients(dtype))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_shows(broken: float) -> None:
    tensors = gradients(torch.float32)
    tensors[1][BLOCK + 1] = broken
    assert not math.isfinite(float(sum_of_squares(tensors)))


def test_no_gradients_no_norm() -> None:
    assert float(sum_of_squares([])) == 0.0
