"""`progress/rank-N.json`: what each rank is doing, for whoever looks from outside.

A thread of its own writes it, every few seconds and when the phase changes. So the last step before a hang
is in it, it says in which line of ours the rank hangs, a rank that is alive can be told from one that is
not, and a file system that does not answer holds up nobody.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.telemetry.launch_identity import job_step, launch_name
from sparse_pretrain.telemetry.metrics_log import without_nan
from sparse_pretrain.telemetry.phases import EVERY_SECONDS, Phase, progress_path
from sparse_pretrain.training.callback import Callback, CheckpointReport, StepReport
from sparse_pretrain.training.signals import STOPPED_EXIT_CODE

# A file system that hangs must not keep a rank from ending.
LAST_WRITE_SECONDS = 5.0
OURS = Path(__file__).resolve().parents[1]
ENDS = {0: Phase.FINISHED, STOPPED_EXIT_CODE: Phase.STOPPED}


class ProgressFile(Callback):
    """One rank's file; told by the trainer on every rank, unlike other callbacks.

    Attributes:
        path: the file.
    """

    def __init__(
        self, run_folder: Path, rank: int, size: int, steps: int, every: float = EVERY_SECONDS
    ) -> None:
        """Begin to write, with the phase `starting`.

        Args:
            run_folder: the run's folder.
            rank: of this process.
            size: number of ranks.
            steps: of the whole run.
            every: seconds between two writes.
        """
        self.path = progress_path(run_folder, rank)
        self._run_folder = run_folder
        self._every = every
        self._before = _content(self.path)
        self._is_first = rank == 0
        self._watched = threading.get_ident()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._done = False
        now = time.time()
        self._facts: dict[str, Any] = {
            "rank": rank,
            "host": platform.node(),
            "process": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "world_size": size,
            "launch": launch_name(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "job_step": job_step(),
            "phase": Phase.STARTING,
            "step": 0,
            "steps": steps,
            "moved": now,
        }
        self._first_step = 0
        self._first_time = now
        self._thread = threading.Thread(target=self._keep_writing, name="progress", daemon=True)
        self._thread.start()

    # --- what the trainer tells ----------------------------------------------------------------------

    def on_start(self, step: int, total_steps: int) -> None:
        """Note where training starts."""
        self._first_step, self._first_time = step, time.time()
        facts: dict[str, Any] = {"step": step, "steps": total_steps}
        if self._is_first:
            owner = read_owner(self._run_folder / CHECKPOINTS)
            facts["start"] = owner.start if owner is not None else 1
        self._note(Phase.TRAINING, facts)

    def on_phase(self, phase: str) -> None:
        """Note what the run does next."""
        self._note(Phase(phase), {})

    def on_step(self, report: StepReport) -> None:
        """Note the step."""
        done = report.step - self._first_step
        facts: dict[str, Any] = {
            "step": report.step,
            "step_seconds": (time.time() - self._first_time) / max(done, 1),
        }
        if self._is_first:
            rate = report.real_tokens / report.seconds
            before = self._facts.get("tokens_per_second", rate)
            facts |= {
                "loss": report.loss,
                "sparsity": report.sparsity,
                "tokens_per_second": 0.9 * before + 0.1 * rate,
            }
        self._note(None, facts)

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """A commit is progress too: on a slow disk it takes longer than many steps."""
        self._note(None, {})

    # --- the end --------------------------------------------------------------------------------------

    def close(self, code: int) -> int:
        """Write how this rank ends, by its exit code, and write no more; return the code."""
        phase = ENDS.get(code, Phase.FAILED)
        # Also when there was nothing left to do, and no step was told.
        self._note(phase, {"step": self._facts["steps"]} if phase is Phase.FINISHED else {})
        self._end()
        return code

    def forget(self) -> None:
        """Leave the folder as it was: the run turned out to be a mistake before it began."""
        if self._done:
            return
        with self._lock:
            self._done = True
        self._end()
        with suppress(OSError):
            if self._before is not None:
                self.path.write_bytes(self._before)
                return
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()

    def _end(self) -> None:
        self._done = True
        self._wake.set()
        self._thread.join(LAST_WRITE_SECONDS)

    # --- writing ----------------------------------------------------------------------------------------

    def _note(self, phase: Phase | None, facts: Mapping[str, Any]) -> None:
        with self._lock:
            changed = phase is not None and phase != self._facts["phase"]
            self._facts |= {**facts, "moved": time.time()}
            if phase is not None:
                self._facts["phase"] = phase
        if changed:
            self._wake.set()

    def _keep_writing(self) -> None:
        # The first write is made here too, so that nobody waits for the disk.
        while True:
            done = self._done
            self._write()
            if done:
                return
            self._wake.wait(self._every)
            self._wake.clear()

    def _write(self) -> None:
        with self._lock:
            facts = {**self._facts, "where": where(self._watched), "time": time.time()}
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        # A full disk or a read-only one is no reason to end a run; without fsync, for it is worth nothing tomorrow.
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(without_nan(facts)) + "\n", encoding="utf-8")
            temporary.replace(self.path)


def where(thread: int) -> str | None:
    """Return the innermost line of this package that a thread is in: `training/world.py:38 sum`."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(OURS):
            return f"{path.relative_to(OURS)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return None


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
