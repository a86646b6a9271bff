"""The order of samples."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.data.order import epochs_and_samples, permute


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 500), seed=st.integers(0, 5), cut=st.integers(0, 1500))
def test_any_position_is_reached_directly(size: int, seed: int, cut: int) -> None:
    """Asking from the middle gives what asking from the start gives: resuming skips nothing."""
    epochs, samples = epochs_and_samples(0, 1600, size, "fingerprint", seed)
    later_epochs, later_samples = epochs_and_samples(cut, 100, size, "fingerprint", seed)
    assert (later_epochs == epochs[cut : cut + 100]).all()
    assert (later_samples == samples[cut : cut + 100]).all()


def test_every_epoch_sees_every_sample_once_in_another_order() -> None:
    _, samples = epochs_and_samples(0, 3000, 1000, "fingerprint", 1)
    first, second, third = samples.reshape(3, 1000)
    for epoch in (first, second, third):
        assert sorted(epoch.tolist()) == list(range(1000))
    assert (first != second).any()
    assert (second != third).any()


def test_seed_and_data_change_the_order() -> None:
    base = epochs_and_samples(0, 100, 1000, "a", 1)[1]
    assert (base != epochs_and_samples(0, 100, 1000, "a", 2)[1]).any()
    assert (base != epochs_and_samples(0, 100, 1000, "b", 1)[1]).any()


def test_golden_order() -> None:
    """The order is part of what a checkpoint means: it must not change between releases."""
    samples = epochs_and_samples(0, 8, 1_000_000, "fingerprint", 42)[1]
    assert samples.tolist() == GOLDEN_SAMPLES


GOLDEN_SAMPLES = [435320, 635143, 337341, 23556, 552034, 52279, 951796, 920508]


def test_positions_mix_well() -> None:
    """Neighbours in the order are not neighbours in the data, and low positions not low samples."""
    samples = permute(np.arange(10_000), 100_000, 7)
    assert abs(float(np.corrcoef(np.arange(10_000), samples)[0, 1])) < 0.05
    assert abs(samples.mean() / 50_000 - 1) < 0.05
