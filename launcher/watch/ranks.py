"""What the ranks of a run say of themselves: `progress/rank-N.json`, read leniently."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_pretrain.checkpoint.fence import runs_here
from sparse_pretrain.telemetry.phases import PROGRESS, Phase


@dataclass(frozen=True)
class RankProgress:
    """One rank's file.

    Attributes:
        rank: its number.
        host: machine it is, or was, on.
        process: process id there.
        process_started: when that process was started, seconds since 1970; 0 when unknown.
        phase: what it is doing.
        time: when it wrote last, seconds since 1970 by its machine's clock.
        moved: when it last did a step or entered a phase.
        step, steps: optimizer steps done, and of the whole run.
        world_size: number of ranks of its start.
        launch: which start of the run it belongs to.
        job_id, job_step: of SLURM, None without.
        where: the line of our code that it was in.
        step_seconds: wall-clock time a step in this start, all pauses included; None before the first.
        start, loss, sparsity, tokens_per_second: rank 0 only.
    """

    rank: int
    host: str
    process: int
    phase: Phase
    time: float
    process_started: float = 0.0
    moved: float = 0.0
    step: int = 0
    steps: int = 0
    world_size: int = 1
    launch: str = ""
    job_id: str | None = None
    job_step: str | None = None
    where: str | None = None
    step_seconds: float | None = None
    start: int | None = None
    loss: float | None = None
    sparsity: float | None = None
    tokens_per_second: float | None = None

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, on this machine."""
        return self.host == platform.node()

    @property
    def lives_here(self) -> bool:
        """Whether its process runs on this machine; a process id that was used again does not count."""
        return runs_here(self.host, self.process, self.process_started)


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run's newest start.

    Attributes:
        arrived: those that have written, by number.
        missing: numbers of those that have not.
    """

    arrived: tuple[RankProgress, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def first(self) -> RankProgress | None:
        """Rank 0, None as long as it has not written."""
        return next((rank for rank in self.arrived if rank.rank == 0), None)

    @property
    def active(self) -> tuple[RankProgress, ...]:
        """Those that have not said that they have ended."""
        return tuple(rank for rank in self.arrived if not rank.phase.is_final)


def read_ranks(run_folder: Path) -> Ranks:
    """Return the ranks of a run's newest start; none when there are no progress files."""
    found = [read_rank(path) for path in sorted((run_folder / PROGRESS).glob("rank-*.json"))]
    return newest_start([rank for rank in found if rank is not None])


def newest_start(found: Sequence[RankProgress]) -> Ranks:
    """Return those of the start that began last; files of earlier starts stay until their rank begins again."""
    if not found:
        return Ranks()
    newest = max(found, key=lambda rank: (rank.process_started, rank.time))
    arrived = {rank.rank: rank for rank in found if rank.launch == newest.launch}
    missing = tuple(number for number in range(newest.world_size) if number not in arrived)
    return Ranks(tuple(arrived[number] for number in sorted(arrived)), missing)


def read_rank(path: Path) -> RankProgress | None:
    """Return what a progress file says; None when it is none, or from another version of this package."""
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {
            name: facts[name] for name in RankProgress.__dataclass_fields__ if facts.get(name) is not None
        }
        return RankProgress(**{**known, "phase": Phase(facts["phase"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
