"""The order of samples: a pure function of (fingerprint, seed, epoch), independent of the number of ranks."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
ROUNDS = 4


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers one to one (the finaliser of splitmix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def key_of(*parts: str | int) -> int:
    """Return a 64-bit key from names and numbers, the same on every machine and in every process."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def permute(positions: Indices, size: int, key: int) -> Indices:
    """Map positions 0..size-1 to sample indices by a keyed permutation, without materialising it.

    A balanced Feistel network over the smallest even number of bits that holds `size`; values that
    fall outside are walked through it again until they fall inside (Black & Rogaway 2002), fewer than
    four times on average. Any position costs O(1): resuming in the middle of an epoch skips nothing.

    Args:
        positions: int64, each in [0, size).
        size: number of samples in the epoch.
        key: see `key_of`.
    """
    half_bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    round_keys = mix(np.arange(ROUNDS, dtype=np.uint64) + np.uint64(key))
    values = positions.astype(np.uint64)
    pending = np.ones(values.shape, dtype=bool)
    while pending.any():
        left, right = values[pending] >> half_bits, values[pending] & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (mix(right ^ round_key) & half_mask)
        values[pending] = (left << half_bits) | right
        pending[pending] = values[pending] >= np.uint64(size)
    return values.astype(np.int64)


def epochs_and_samples(
    first: int, count: int, size: int, fingerprint: str, seed: int
) -> tuple[Indices, Indices]:
    """Return (epochs, sample indices), int64 of length `count`, of positions first … first + count - 1.

    Positions count samples since the start of training and run on through the epochs; every epoch is
    another permutation.
    """
    positions = np.arange(first, first + count, dtype=np.int64)
    epochs, within = positions // size, positions % size
    samples = np.empty_like(within)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        samples[chosen] = permute(within[chosen], size, key_of("order", fingerprint, seed, int(epoch)))
    return epochs, samples
