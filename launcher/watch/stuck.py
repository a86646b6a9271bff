"""Which ranks hold up the others.

Ranks wait for each other at every step, so when one hangs all hang. The one to blame is not there, does not
write any more, has done fewer steps, or is in another line than the others, which wait for it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from launcher.watch.ranks import RankProgress, Ranks

# A rank writes every 5 s; so long without a word is death, or a file system that does not answer.
SILENT_SECONDS = 60.0
# Steps may be slow: what is slow is measured against the run's own pace.
PATIENCE_STEPS = 10.0


@dataclass(frozen=True)
class Behind:
    """A rank that holds up the others.

    Attributes:
        rank: its number.
        host: its machine, None when it has not arrived.
        why: in what it differs from the others.
    """

    rank: int
    host: str | None
    why: str


def standstill(ranks: Ranks, now: float) -> float:
    """Return the seconds since any active rank did a step or entered a phase; 0 when none is active."""
    return max(0.0, now - max((rank.moved for rank in ranks.active), default=now))


def is_stuck(ranks: Ranks, now: float, patience: float) -> bool:
    """Say whether nothing has moved for `patience` seconds, and for ten of the run's steps."""
    pace = max((rank.step_seconds or 0.0 for rank in ranks.active), default=0.0)
    return standstill(ranks, now) > max(patience, PATIENCE_STEPS * pace)


def find_behind(ranks: Ranks) -> list[Behind]:
    """Return the ranks that hold up the others, by the strongest evidence there is; none when all are alike."""
    if ranks.missing:
        return [Behind(number, None, "has not arrived") for number in ranks.missing]
    newest = max((rank.time for rank in ranks.arrived), default=0.0)
    steps = max((rank.step for rank in ranks.arrived), default=0)
    usual = usual_place(ranks)
    reasons: tuple[Callable[[RankProgress], str | None], ...] = (
        lambda rank: f"has ended ({rank.phase})" if rank.phase.is_final else None,
        lambda rank: (
            f"silent for {newest - rank.time:.0f} s longer than others"
            if newest - rank.time > SILENT_SECONDS
            else None
        ),
        lambda rank: f"at step {rank.step}, others at {steps}" if rank.step < steps else None,
        lambda rank: f"in {rank.where}, others in {usual}" if usual not in (None, rank.where) else None,
    )
    for reason in reasons:
        found = [(rank, reason(rank)) for rank in ranks.arrived]
        behind = [Behind(rank.rank, rank.host, why) for rank, why in found if why is not None]
        if behind:
            return behind
    return []


def usual_place(ranks: Ranks) -> str | None:
    """Return the line that more than half of the active ranks are in, if there is one."""
    places: Counter[str] = Counter(rank.where for rank in ranks.active if rank.where is not None)
    if not places:
        return None
    place, count = places.most_common(1)[0]
    return place if 2 * count > len(ranks.active) else None
