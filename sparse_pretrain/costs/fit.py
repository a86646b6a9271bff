"""Constants of a kernel from a few timings of it."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sparse_pretrain.costs.hardware import KernelCost
from sparse_pretrain.costs.work import Work

NAMES = ("per_flop", "per_element", "per_call")


class Sample(NamedTuple):
    """One timing: what was done, in seconds."""

    work: Work
    seconds: float


def fit(samples: Sequence[Sample]) -> KernelCost:
    """Return the constants, none negative, whose relative errors have the least sum of squares.

    seconds = per_flop x FLOPs + per_element x elements + per_call x calls. With three unknowns every set of those that
    are not zero can be tried.

    Raises:
        ValueError: no samples, or none that took any time.
    """
    rows = np.array([[work.flops, work.elements, work.calls] for work, _ in samples], dtype=np.float64)
    seconds = np.array([taken for _, taken in samples], dtype=np.float64)
    if not len(seconds) or not (seconds > 0).all():
        raise ValueError("a kernel's constants need timings above 0")
    scaled = rows / seconds[:, None]
    used = [index for index in range(len(NAMES)) if scaled[:, index].any()]
    best: tuple[float, dict[str, float]] = (np.inf, {})
    for size in range(1, len(used) + 1):
        for chosen in combinations(used, size):
            columns = scaled[:, chosen]
            # Columns differ by fifteen orders of magnitude.
            norms = np.linalg.norm(columns, axis=0)
            found, *_ = np.linalg.lstsq(columns / norms, np.ones(len(seconds)), rcond=None)
            if (found < 0).any():
                continue
            error = float(np.sum((columns / norms @ found - 1) ** 2))
            if error < best[0]:
                best = (
                    error,
                    {NAMES[i]: float(v / n) for i, v, n in zip(chosen, found, norms, strict=True)},
                )
    return KernelCost(**best[1])
