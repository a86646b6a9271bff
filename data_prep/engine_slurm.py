"""The same jobs on many nodes: datatrove's SLURM executor behind our interface.

Every job becomes an array of tasks. This process submits it, waits for it and goes on with the next stage;
killed and started again, it submits what is not finished. It knows nothing of sites: `sparse-pretrain data prepare
--slurm` turns a site's file into `SlurmSettings`.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor

from data_prep.engine import Job
from sparse_pretrain.errors import FailedError

LAUNCH = "launch_pickled_pipeline"
# The queue forgets a job a moment before its last markers are seen on a network disk.
GONE_POLLS = 3


@dataclass(frozen=True)
class SlurmSettings:
    """How tasks get onto nodes.

    Attributes:
        time: limit of one task, in SLURM's form.
        at_once: tasks that run at the same time; -1 for as many as fit.
        memory_gb: of a task.
        options: further sbatch options by name without dashes, such as {"partition": "cpu"}.
        setup: shell lines before a task.
        python: interpreter that has this project on every node.
        poll_seconds: between two looks at the queue.
    """

    time: str = "24:00:00"
    at_once: int = -1
    memory_gb: int = 4
    options: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    python: str = sys.executable
    poll_seconds: float = 10.0


class ArrayExecutor(SlurmPipelineExecutor):
    """datatrove's executor without a partition of its own, without its job for statistics, and with our Python."""

    python: str = sys.executable

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return the options; those without a value are left to SLURM."""
        options = super().get_sbatch_args(max_array)
        return {name: value for name, value in options.items() if value is not None}

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """Return the sbatch script."""
        module = f"{shlex.quote(self.python)} -m datatrove.tools.{LAUNCH}"
        return str(super().get_launch_file_contents(sbatch_args, run_script.replace(LAUNCH, module, 1)))

    def launch_merge_stats(self) -> None:
        """Nobody reads them."""


class SlurmEngine:
    """Runs jobs as arrays of SLURM tasks and waits for them."""

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """See `engine.Engine`.

        Raises:
            FailedError: SLURM refuses the job, or the job ends before its tasks are done.
        """
        executor = self.executor(job)
        open_tasks = set(range(job.tasks))
        self._tell(executor, open_tasks, finished)
        if not open_tasks:
            return
        try:
            executor.launch_job()
        except (OSError, subprocess.CalledProcessError) as error:
            raise FailedError(f"sbatch failed for {job.name!r}: {error}") from None
        gone = 0
        while open_tasks:
            time.sleep(self._settings.poll_seconds)
            gone = 0 if in_queue(str(executor.job_id)) else gone + 1
            self._tell(executor, open_tasks, finished)
            if open_tasks and gone >= GONE_POLLS:
                raise FailedError(
                    f"{job.name!r}: job {executor.job_id} ended with {len(open_tasks):,} of {job.tasks:,} tasks "
                    f"undone; its output: {job.state}/slurm_logs; what is done is kept: run again"
                )

    def executor(self, job: Job) -> ArrayExecutor:
        """Return datatrove's executor of a job."""
        settings = self._settings
        executor = ArrayExecutor(
            pipeline=job.pipeline,
            tasks=job.tasks,
            time=settings.time,
            partition=None,
            mem_per_cpu_gb=settings.memory_gb,
            workers=settings.at_once,
            job_name=job.name.replace(" ", "-"),
            qos=None,
            env_command="\n".join(settings.setup),
            sbatch_args=dict(settings.options),
            logging_dir=str(Path(job.state).absolute()),
            mail_type="NONE",
        )
        executor.python = settings.python
        return executor

    def _tell(self, executor: ArrayExecutor, open_tasks: set[int], finished: Callable[[int], None]) -> None:
        """Report the tasks that have been finished since the last look."""
        for rank in sorted(open_tasks - set(executor.get_incomplete_ranks())):
            open_tasks.remove(rank)
            finished(rank)


def in_queue(job_id: str) -> bool:
    """Tell whether a job waits or runs; True when the queue does not answer."""
    command = [
        "squeue",
        "--noheader",
        "--jobs",
        job_id,
        "--states",
        "PENDING,RUNNING,COMPLETING,CONFIGURING,SUSPENDED",
    ]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    if found.returncode:
        return "Invalid job id" not in found.stderr
    return bool(found.stdout.strip())
