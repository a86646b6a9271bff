"""Run folders: what was submitted for them, their logs, and where they are."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparse_pretrain.checkpoint.layout import CHECKPOINTS, MANIFEST, saved_steps, step_folder
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.telemetry.phases import PROGRESS

JOB = Path("slurm", "job.json")
JOBS = Path("slurm", "jobs.jsonl")
LOGS = "logs"
JOB_OUTPUT = re.compile(r"job-(\d+)\.out")
DEEPEST = 6


@dataclass(frozen=True)
class Submitted:
    """What `launch slurm` wrote down of the newest job of a run.

    Attributes:
        job_id: its number.
        name: of the job.
        chain: numbers of all jobs of this run that were ever submitted, the newest included.
    """

    job_id: str
    name: str = ""
    chain: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint: its name, step, and when it was written (seconds since 1970)."""

    name: str
    step: int
    written: float


def check_run(path: Path) -> Path:
    """Return a run's folder.

    Raises:
        UserError: it is none.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder (the recipe's output)")
    if not is_run(path):
        raise UserError(f"{path}: not a run folder (no {PROGRESS}/, {JOB} or {CHECKPOINTS}/ in it)")
    return path


def is_run(folder: Path) -> bool:
    """Say whether a folder is one that a training run writes to."""
    return (
        (folder / PROGRESS).is_dir()
        or (folder / JOB).is_file()
        or ((folder / CHECKPOINTS).is_dir() and (folder / "recipe.yaml").is_file())
    )


def find_runs(below: Path) -> list[Path]:
    """Return all run folders in and below a folder, sorted; a run has no runs inside.

    Raises:
        UserError: no such folder.
    """
    if not below.is_dir():
        raise UserError(f"{below}: no such folder")
    return sorted(_walk(below, DEEPEST))


def _walk(folder: Path, deeper: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if not deeper:
        return
    try:
        inside = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for path in inside:
        if not path.name.startswith("."):
            yield from _walk(path, deeper - 1)


def read_submitted(run_folder: Path) -> Submitted | None:
    """Return the newest job that was submitted for a run, None when there was none."""
    try:
        facts = read_json(run_folder / JOB)
        number, name = str(facts["job_id"]), str(facts.get("name", ""))
    except (UserError, KeyError, TypeError, AttributeError, OSError):
        return None
    return Submitted(number, name, tuple(dict.fromkeys([*_history(run_folder), number])))


def _history(run_folder: Path) -> list[str]:
    numbers = []
    try:
        lines = (run_folder / JOBS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            facts: Any = json.loads(line)
            numbers.append(str(facts["job_id"]))
        except (ValueError, KeyError, TypeError):
            continue
    return numbers


def newest_checkpoint(run_folder: Path) -> Saved | None:
    """Return a run's newest checkpoint by its name, None without one; its content is not checked."""
    checkpoints = run_folder / CHECKPOINTS
    for step in reversed(saved_steps(checkpoints)):
        folder = step_folder(checkpoints, step)
        try:
            return Saved(folder.name, step, (folder / MANIFEST).stat().st_mtime)
        except OSError:
            continue
    return None


def rank_log(run_folder: Path, rank: int) -> Path:
    """Return a rank's log."""
    return run_folder / LOGS / f"rank-{rank}.log"


def job_output(run_folder: Path) -> Path | None:
    """Return the output of the newest job of a run, None without one."""
    found = [
        (int(match.group(1)), path)
        for path in (run_folder / JOB).parent.glob("job-*.out")
        if (match := JOB_OUTPUT.fullmatch(path.name))
    ]
    return max(found)[1] if found else None


def last_line(path: Path) -> str | None:
    """Return the last line of a log that is not empty, None without one; only the file's end is read."""
    return next(iter(last_lines(path, 1)), None)


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log that are not empty; only the file's end is read."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - 8192))
            lines = handle.read().decode(errors="replace").split("\n")
    except OSError:
        return []
    return [line.split("\r")[-1].rstrip() for line in lines if line.strip()][-count:]
