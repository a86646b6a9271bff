"""How sparse the weights should be after a number of steps, and when masks may change."""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from sparse_pretrain.config.pruning import PruningSection

Shape = Literal["cubic", "linear", "exponential", "table", "one_shot", "constant"]


@dataclass(frozen=True)
class Schedule:
    """When masks are updated, and the rise of the target from `initial` to `final` sparsity.

    Steps are optimizer steps done, counted from 0; sparsities are shares of zeros in [0, 1).

    Attributes:
        shape: how the target rises between `begin` and `ramp_end`.
        begin: the first update; before it the target is 0.
        ramp_end: the target is `final` from here on (not read by table, one_shot and constant).
        end: no update after this step.
        frequency: steps between updates.
        initial: target at `begin` (not read by one_shot and constant).
        final: target at the end.
        table: for shape table, (step, sparsity from there on), rising.
        regrowth: whether a pruned weight may come back at all.
        regrowth_until: the last step at which it may; None: at every update.
    """

    shape: Shape
    begin: int
    ramp_end: int
    end: int
    frequency: int
    initial: float
    final: float
    table: tuple[tuple[int, float], ...] = ()
    regrowth: bool = True
    regrowth_until: int | None = None

    @classmethod
    def of(cls, section: PruningSection) -> "Schedule":
        """Return the schedule that a recipe's section asks for; the section has checked that it fits."""
        return cls(
            shape=section.schedule,
            begin=section.begin,
            ramp_end=section.ramp_end,
            end=section.end,
            frequency=section.frequency,
            initial=section.initial_sparsity,
            final=section.target_sparsity,
            table=tuple(sorted(section.table.items())),
            regrowth=section.regrowth,
            regrowth_until=section.regrowth_until,
        )

    @property
    def last_update(self) -> int:
        """Step after which masks are updated for the last time and freeze."""
        return self.begin + (self.end - self.begin) // self.frequency * self.frequency


def target_sparsity(step: int, schedule: Schedule) -> float:
    """Return the target over all weights after `step` optimizer steps, in [0, 1); it never falls.

    With x = (t - begin) / (ramp_end - begin), clamped to [0, 1], from `begin` on:

    - cubic: s_f + (s_i - s_f) (1 - x)^3 (Zhu & Gupta 2017, eq. 1; used by Prune Once for All)
    - linear: s_i + (s_f - s_i) x
    - exponential: 1 - (1 - s_i) ((1 - s_f) / (1 - s_i))^x, so that every step keeps the same share of
      the weights that are left (the density decays geometrically, as in Frankle & Carbin 2019)
    - table: the value of the last entry at or before t, s_i before the first
    - one_shot and constant: s_f
    """
    if step < schedule.begin:
        return 0.0
    if schedule.shape == "table":
        return _table_value(step, schedule)
    return schedule.final + (schedule.initial - schedule.final) * _left(step, schedule)


def weight_sparsity(step: int, schedule: Schedule, final: float) -> float:
    """Return the target of a weight whose last one is not the schedule's, in [0, 1); it never falls.

    s_i + (f - s_i) p(t) with the weight's own final sparsity f and the schedule's progress
    p(t) = (s(t) - s_i) / (s_f - s_i). A weight that shall end below the
    schedule's initial sparsity starts at f: rising to s_i only to grow back would lose weights for nothing.

    Args:
        step: optimizer steps done.
        schedule: of the run.
        final: the weight's sparsity at the end, in [0, 1).
    """
    if step < schedule.begin:
        return 0.0
    if final == schedule.final:
        return target_sparsity(step, schedule)
    return final + (min(schedule.initial, final) - final) * _left(step, schedule)


def is_update_step(step: int, schedule: Schedule) -> bool:
    """Say whether masks are recomputed after `step` steps: at begin + k frequency, up to `end`."""
    inside = schedule.begin <= step <= schedule.end
    return inside and (step - schedule.begin) % schedule.frequency == 0


def may_regrow(step: int, schedule: Schedule) -> bool:
    """Say whether pruned weights may come back after `step` steps: at updates, up to `regrowth_until`."""
    allowed = schedule.regrowth_until is None or step <= schedule.regrowth_until
    return schedule.regrowth and allowed and is_update_step(step, schedule)


def _left(step: int, schedule: Schedule) -> float:
    """Return 1 - p(t), the share of the rise that is still ahead, from `begin` on."""
    if schedule.shape in ("one_shot", "constant"):
        return 0.0
    if schedule.shape == "table":
        rise = schedule.final - schedule.initial
        return (schedule.final - _table_value(step, schedule)) / rise if rise else 0.0
    done = min((step - schedule.begin) / (schedule.ramp_end - schedule.begin), 1.0)
    if schedule.shape == "cubic":
        return (1.0 - done) ** 3
    if schedule.shape == "exponential":
        return _geometric(done, schedule)
    return 1.0 - done


def _geometric(done: float, schedule: Schedule) -> float:
    """Return (q^x - q) / (1 - q) for q = (1 - s_f) / (1 - s_i), without cancellation near q = 1."""
    log_q = math.log1p(-schedule.final) - math.log1p(-schedule.initial)
    if log_q == 0.0:
        return 1.0 - done
    left = math.exp(log_q) * math.expm1((done - 1.0) * log_q) / -math.expm1(log_q)
    return min(max(left, 0.0), 1.0)


def _table_value(step: int, schedule: Schedule) -> float:
    entries = bisect_right(schedule.table, step, key=lambda entry: entry[0])
    return schedule.table[entries - 1][1] if entries else schedule.initial
