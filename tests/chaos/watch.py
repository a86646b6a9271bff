"""Sees what a run is doing from outside: its processes, its folder, its printed lines."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from launcher.rank import before_the_program
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, MANIFEST, PARTIAL

REPOSITORY = Path(__file__).parents[2]
POLL_SECONDS = 0.001
# Nothing a healthy run does takes so long, on busy cores either; DeepSpeed's first compilation does not count.
PATIENCE_SECONDS = 120.0
RESUMED = re.compile(r"continuing from \S*step-(\d+)$", re.MULTILINE)
# Start 0: what we left there ourselves.
BEING_WRITTEN = re.compile(rf"\.step-(\d+)\.start-[1-9]\d*{re.escape(PARTIAL)}")


class HangError(RuntimeError):
    """Something did not happen in the time that it may take."""


class EndedError(RuntimeError):
    """The run ended while it was waited for."""


class Start:
    """One start of the run: the launcher, its ranks, and what they print."""

    def __init__(self, command: Sequence[str], run: Path, printed: Path) -> None:
        """Start `command` in the folder that `run` lies in; what it prints goes to the file `printed`."""
        self.run = run
        self.began = time.monotonic()
        self._printed = printed
        self._old = set(partials(run))
        self._first_row = last_step(run)
        self._seen: dict[int, psutil.Process] = {}
        with printed.open("wb") as file:
            self.launcher = subprocess.Popen(
                command,
                cwd=run.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": str(REPOSITORY),
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=before_the_program(frozenset()),
            )

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks that are alive, in no order."""
        try:
            for child in psutil.Process(self.launcher.pid).children():
                self._seen.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass
        return [process for process in self._seen.values() if is_alive(process)]

    def printed(self) -> str:
        """Return everything that was printed so far."""
        return self._printed.read_bytes().decode(errors="replace")

    def resumed_from(self) -> int | None:
        """Return the step that it said it continues from."""
        found = RESUMED.search(self.printed())
        return int(found.group(1)) if found else None

    def seconds(self) -> float:
        """Return how long it has been running."""
        return time.monotonic() - self.began

    def saves_begun(self) -> set[str]:
        """Return the names of the staging folders that are there now and that it made."""
        return set(partials(self.run)) - self._old

    def until(self, what: str, happened: Callable[[], bool], patience: float = PATIENCE_SECONDS) -> None:
        """Wait for something.

        Raises:
            EndedError: the run ended first.
            HangError: it took longer than `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while not happened():
            if self.launcher.poll() is not None:
                raise EndedError
            if time.monotonic() > deadline:
                raise HangError(f"{patience:.0f} s without {what}")
            time.sleep(POLL_SECONDS)

    def until_seconds(self, seconds: float) -> None:
        """Wait until it has been running for `seconds`."""
        self.until(f"{seconds:.1f} s having passed", lambda: self.seconds() >= seconds)

    def pause(self, seconds: float) -> None:
        """Let so much time pass while the run goes on."""
        self.until_seconds(self.seconds() + seconds)

    def until_trained(self, steps: int) -> None:
        """Wait until this start has trained `steps` steps, or to the end of the run."""
        wanted = (self._await_first_step() or 0) + steps
        self.until(f"step {wanted}", lambda: (last_step(self.run) or 0) >= wanted)

    def _await_first_step(self) -> int | None:
        # The rows of the work that was lost are dropped when training begins: `telemetry.metrics_log`.
        size = rows_written(self.run)
        self.until("a first step", lambda: rows_written(self.run) != size)
        return last_step(self.run)

    def until_saving(self, saves: int) -> str:
        """Wait until this start begins its save number `saves` (from 0); return the staging folder's name."""
        seen: set[str] = set()

        def begun() -> bool:
            seen.update(self.saves_begun())
            return len(seen) > saves

        self.until(f"save number {saves}", begun)
        return max(seen)

    def until_committing(self, staging: str) -> None:
        """Wait until a save is given its name: its manifest is being written, or it has gone already."""
        folder = self.run / CHECKPOINTS / staging

        def committing() -> bool:
            try:
                return any(MANIFEST in path.name for path in folder.iterdir())
            except FileNotFoundError:
                return True

        self.until("a commit", committing)

    def wait(self, patience: float = PATIENCE_SECONDS) -> int:
        """Wait until the launcher and all ranks are gone; return the exit code.

        Raises:
            HangError: they are not, after `patience` seconds.
        """
        self.ranks()
        deadline = time.monotonic() + patience
        while self.launcher.poll() is None or self.ranks():
            if time.monotonic() > deadline:
                raise HangError(f"still alive after {patience:.0f} s")
            time.sleep(0.01)
        return self.launcher.returncode

    def end(self) -> None:
        """Leave nothing running, whatever happened."""
        alive = [process for rank in self.ranks() for process in [rank, *descendants(rank)]]
        self.launcher.kill()
        self.launcher.wait()
        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def train_command(nproc: int, settings: Sequence[str], steps: int) -> list[str]:
    """Return the real command: the tiny recipe on `nproc` ranks of this machine."""
    command = [
        sys.executable,
        "-m",
        "sparse_pretrain",
        "launch",
        "local",
        "train-tiny",
        "--nproc",
        str(nproc),
    ]
    return [*command, "data.path=data", "output=run", f"steps={steps}", *settings]


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return what a process has started, directly or not."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def partials(run: Path) -> list[str]:
    """Return the names of the folders in which a save is being written, or was when its run died."""
    try:
        return [path.name for path in (run / CHECKPOINTS).iterdir() if BEING_WRITTEN.fullmatch(path.name)]
    except FileNotFoundError:
        return []


def step_being_written(run: Path) -> int | None:
    """Return the step that a run was saving when it died."""
    steps = [int(found.group(1)) for name in partials(run) if (found := BEING_WRITTEN.fullmatch(name))]
    return max(steps, default=None)


def rows_written(run: Path) -> tuple[int, int]:
    """Return size and inode of a run's metrics: they change whenever a row is written or rows are dropped."""
    try:
        status = (run / "metrics.jsonl").stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_ino


def last_step(run: Path) -> int | None:
    """Return the last step that a run says it has trained."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return None
    for line in reversed(path.read_bytes().splitlines()):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half a line: it was killed
        if row["kind"] == "train":
            return int(row["step"])
    return None
