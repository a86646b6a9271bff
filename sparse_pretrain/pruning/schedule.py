"""How sparse the weights should be after a number of steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """A rise from `initial` to `final` sparsity between optimizer steps `start` and `end`."""

    start: int
    end: int
    initial: float
    final: float


def cubic_sparsity(step: int, ramp: Ramp) -> float:
    """Return the target sparsity after `step` optimizer steps, rising fast first and slowly at the end.

    s(t) = s_f + (s_i - s_f) (1 - (t - t_0) / (t_1 - t_0))^3, clamped to [t_0, t_1]
    (Zhu & Gupta 2017, eq. 1; used by Prune Once for All).

    Args:
        step: optimizer steps done so far, counted from 0.
        ramp: start and end step, initial and final sparsity, both in [0, 1).

    Returns:
        Share of weights that are zero, in [0, 1).
    """
    progress = min(max((step - ramp.start) / (ramp.end - ramp.start), 0.0), 1.0)
    return ramp.final + (ramp.initial - ramp.final) * (1.0 - progress) ** 3
