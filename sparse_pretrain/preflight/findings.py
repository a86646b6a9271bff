"""What is not as it should be on some rank: one line each, with where and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["wrong", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        check: what was looked at: arrival, versions, code, paths, run folder, space, clock, network, speed, gpu.
        level: `wrong` would end a run or spoil it, `warning` makes it slower or may be meant so.
        what: is wrong, in one line.
        advice: what to do.
        rank: where; None when it is not about one rank.
        host: where; None when it is not about one machine.
    """

    check: str
    level: Level
    what: str
    advice: str
    rank: int | None = None
    host: str | None = None

    def line(self) -> str:
        """Return it for people."""
        ranks = f"rank {self.rank}" if self.rank is not None else ""
        place = " on ".join(part for part in (ranks, self.host) if part)
        return f"{self.level}: {self.check}: {f'{place}: ' if place else ''}{self.what}; {self.advice}"


def unwritable(run_folder: Path, problem: str, rank: int, host: str) -> Finding:
    """Return that a rank cannot write to the run folder, and why."""
    return Finding(
        "run folder",
        "wrong",
        f"cannot write to {run_folder}: {problem}",
        "make it writable there, or choose another output",
        rank,
        host,
    )


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with those that are wrong first, else in the order in which they came."""
    return tuple(sorted(findings, key=lambda finding: finding.level != "wrong"))
