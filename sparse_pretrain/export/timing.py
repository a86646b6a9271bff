"""Speed of several models side by side: their calls alternate, so that what else the machine does hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparse_pretrain.export.inputs import Batch
from sparse_pretrain.export.runners import Run


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Attributes:
        rounds: calls of each model at most.
        least_rounds: and at least.
        seconds: no further round begins after so long.
    """

    rounds: int
    least_rounds: int
    seconds: float


THOROUGH = Pace(rounds=30, least_rounds=5, seconds=20.0)
QUICK = Pace(rounds=2, least_rounds=2, seconds=1.0)


def side_by_side(
    runs: Mapping[str, Run], batch: Batch, pace: Pace, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every call by model; one call each before the clock runs.

    The order turns around in every other round: neither always follows the other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(batch)
    start = clock()
    for number in range(pace.rounds):
        if number >= pace.least_rounds and clock() - start > pace.seconds:
            break
        names = list(runs) if number % 2 == 0 else list(reversed(list(runs)))
        for name in names:
            before = clock()
            runs[name](batch)
            seconds[name].append(clock() - before)
    return seconds


def summary(seconds: list[float], inputs: int) -> dict[str, float]:
    """Return median, fastest and slowest call in milliseconds, and inputs a second by the median."""
    median = statistics.median(seconds)
    return {
        "median_ms": 1000 * median,
        "fastest_ms": 1000 * min(seconds),
        "slowest_ms": 1000 * max(seconds),
        "inputs_per_second": inputs / median,
        "calls": len(seconds),
    }
