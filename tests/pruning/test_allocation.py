"""Exactly the asked-for number of weights goes, the smallest ones, ties by index."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.pruning.allocation import keep_highest


@given(
    # Few distinct values: ties everywhere.
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=200),
    sparsity=st.floats(0, 1),
)
def test_prunes_exactly_the_lowest(values: list[int], sparsity: float) -> None:
    scores = torch.tensor(values, dtype=torch.float32).abs()
    keep = keep_highest(scores, sparsity)
    # Python's sort is stable: equal scores stay in the order of their index.
    order = sorted(range(len(values)), key=lambda index: abs(values[index]))
    pruned = set(order[: round(sparsity * len(values))])
    assert {index for index, kept in enumerate(keep.tolist()) if not kept} == pruned


def test_shape_is_kept_and_all_equal_weights_are_pruned_in_order() -> None:
    keep = keep_highest(torch.ones(4, 5), 0.5)
    assert keep.shape == (4, 5)
    assert keep.reshape(-1).tolist() == [False] * 10 + [True] * 10


def test_broken_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        keep_highest(torch.tensor([1.0, float("nan")]), 0.5)
