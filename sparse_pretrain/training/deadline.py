"""When the scheduler will end this process: a run leaves before that, by itself and with a checkpoint."""

import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

# For schedulers other than SLURM: seconds since 1970, set by the job's own script.
END_TIME = "SPARSE_PRETRAIN_END_TIME"
SQUEUE_SECONDS = 15.0


class Deadline:
    """The end of an allocation, and how long before it a run must begin to leave."""

    def __init__(self, end: float, margin: float) -> None:
        """Count to `end` (seconds since 1970), less `margin` seconds."""
        self._end = end
        self._margin = margin

    def remaining(self) -> float:
        """Return the seconds left until the scheduler ends the process."""
        return self._end - time.time()

    def is_near(self, needed: float) -> bool:
        """Say whether to leave now, when one more step and a save take `needed` seconds."""
        return self.remaining() < self._margin + needed


def end_of_allocation(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return when the scheduler will end this job, in seconds since 1970; None when nobody says.

    Asked in this order: `SPARSE_PRETRAIN_END_TIME`, `SLURM_JOB_END_TIME` (newer SLURM sets it), `squeue`.
    """
    for name in (END_TIME, "SLURM_JOB_END_TIME"):
        with suppress(ValueError):
            return float(environment.get(name, ""))
    job = environment.get("SLURM_JOB_ID")
    return None if job is None else ask_squeue(job)


def ask_squeue(job: str) -> float | None:
    """Return a SLURM job's end by `squeue`, None when it does not answer or the job has no limit."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%e"],
            capture_output=True,
            text=True,
            timeout=SQUEUE_SECONDS,
            check=True,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
        return datetime.fromisoformat(done.stdout.strip()).timestamp()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
