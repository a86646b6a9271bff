"""How fast a rank's core and memory are: every step waits for the slowest."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_high

import numpy as np

from sparse_pretrain.preflight.findings import Finding

CORE_SECONDS = 0.5
CORE_LOOPS = 2_000
MEMORY_BYTES = 32 * 2**20
MEMORY_ROUNDS = 5
# Enough to know a rank that is very slow: nobody waits for its other rounds.
MEMORY_SECONDS = 1.0
SLOWER = 2.0


@dataclass(frozen=True)
class Speed:
    """How fast one rank is.

    Attributes:
        rank: its number.
        host: its machine.
        core_rate: simple operations of one core a second.
        memory_rate: bytes copied a second.
    """

    rank: int
    host: str
    core_rate: float
    memory_rate: float


def measure_speed(rank: int, host: str) -> Speed:
    """Measure core and memory of this rank, which takes a second; all ranks at the same time, as in training."""
    return Speed(rank, host, core_rate(), memory_rate())


def core_rate(seconds: float = CORE_SECONDS) -> float:
    """Return how many simple operations of Python this core does a second, over some wall-clock time.

    Wall-clock, and not the best of short bursts: a core that others use, or that a quota stops, is slow as well.
    """
    done = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        total = 0
        for number in range(CORE_LOOPS):
            total += number & 7
        done += CORE_LOOPS
    return done / spent


def memory_rate() -> float:
    """Return how many bytes a second this rank copies in memory, the best of a few times."""
    source = np.ones(MEMORY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    best = sys.float_info.max
    began = time.perf_counter()
    for _ in range(MEMORY_ROUNDS):
        started = time.perf_counter()
        np.copyto(target, source)
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended - began > MEMORY_SECONDS:
            break
    return MEMORY_BYTES / best


def slow_ranks(speeds: Sequence[Speed]) -> list[Finding]:
    """Return ranks more than two times slower than the median."""
    kinds: tuple[tuple[str, Callable[[Speed], float], str], ...] = (
        ("core", lambda one: one.core_rate, "is its core shared, throttled, or under a quota?"),
        ("memory", lambda one: one.memory_rate, "does something else on the machine use its memory?"),
    )
    findings = []
    for name, rate_of, advice in kinds:
        # The upper median: of two ranks the slower one must not be its own measure.
        middle = median_high(map(rate_of, speeds))
        findings += [
            Finding(
                "speed",
                "warning",
                f"its {name} is {middle / rate_of(one):.1f} times slower than the median",
                advice,
                one.rank,
                one.host,
            )
            for one in speeds
            if rate_of(one) * SLOWER < middle
        ]
    return findings
