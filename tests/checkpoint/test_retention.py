"""The newest whole checkpoint is never deleted, and no broken one counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.checkpoint.retention import steps_to_delete

STEPS = st.lists(st.integers(0, 60), unique=True, max_size=12)
EVERY = st.none() | st.integers(1, 20)


@given(steps=STEPS, last=st.integers(1, 5), every=EVERY, broken=STEPS)
def test_what_stays_is_the_newest_whole_ones_and_the_multiples(
    steps: list[int], last: int, every: int | None, broken: list[int]
) -> None:
    gone = steps_to_delete(steps, last, every, broken)
    assert gone == sorted(gone)
    assert set(gone) <= set(steps)
    kept = [step for step in sorted(steps) if step not in gone]
    whole = [step for step in sorted(steps) if step not in broken]
    kept_whole = [step for step in kept if step in whole]
    # The newest whole ones, exactly as many as asked for (or as there are) …
    assert kept_whole[-last:] == whole[-last:]
    # … and of the older ones those at multiples, no other.
    older = whole[:-last]
    assert kept_whole[:-last] == [step for step in older if every is not None and step % every == 0]
    # Broken ones stay until there are enough whole ones, all of them; then none does.
    assert [step for step in kept if step in broken] == (
        [step for step in sorted(steps) if step in broken] if len(whole) < last else []
    )


@given(steps=STEPS, last=st.integers(1, 5), every=EVERY)
def test_deleting_twice_deletes_nothing_more(steps: list[int], last: int, every: int | None) -> None:
    kept = set(steps) - set(steps_to_delete(steps, last, every))
    assert steps_to_delete(sorted(kept), last, every) == []


def test_by_hand() -> None:
    assert steps_to_delete([100, 200, 300, 400], last=2) == [100, 200]
    assert steps_to_delete([400, 100, 300, 200], last=1, every=200) == [100, 300]
    # 400 is broken: 200 and 300 are what a run can go on from.
    assert steps_to_delete([100, 200, 300, 400], last=2, broken=[400]) == [100, 400]
    assert steps_to_delete([300, 400], last=2, broken=[400]) == []
    assert steps_to_delete([], last=1) == []


@pytest.mark.parametrize("last", [0, -1])
def test_the_newest_is_always_kept(last: int) -> None:
    with pytest.raises(ValueError, match="the newest checkpoint is always kept"):
        steps_to_delete([1], last)
