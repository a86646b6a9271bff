"""What runs a pipeline's tasks: datatrove's executors behind one small interface.

A task that is finished leaves a marker in the job's folder, so that the same job run again does the rest only.
"""

import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import Stats

from data_prep.parallel import Workers
from sparse_pretrain.files import atomic_path

# What workers print belongs to no one's terminal; each task's own lines are in the job's `logs/`.
logger.disable("datatrove")

PIPELINE_FILE = "pipeline.pickle"


class Job(NamedTuple):
    """A pipeline and its tasks.

    Attributes:
        name: a word or two, for logs.
        pipeline: datatrove steps; the tasks are told apart by the rank that `run` is given.
        tasks: how many.
        folder: of the job alone; markers, statistics and logs go to its subfolder `job`.
    """

    name: str
    pipeline: list[PipelineStep]
    tasks: int
    folder: Path

    @property
    def state(self) -> Path:
        """Where the markers are."""
        return self.folder / "job"


class Engine(Protocol):
    """Runs jobs, here or elsewhere."""

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """Run the tasks that are not finished yet, in any order; return when all are.

        Args:
            job: what to run.
            finished: called with the number of every task when it is done, those done before included.
        """


class LocalEngine:
    """datatrove's local executor on this machine, with our processes in place of its pool.

    After a `kill -9` its pool leaves a manager process behind for ever, and its workers finish their task first.
    """

    def __init__(self, workers: int) -> None:
        """See `parallel.Workers`; used as a context manager."""
        self._workers = Workers(workers)

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """See `Engine`."""
        executor = LocalPipelineExecutor(job.pipeline, tasks=job.tasks, logging_dir=str(job.state))
        todo = executor.get_incomplete_ranks()
        for rank in sorted(set(range(job.tasks)) - set(todo)):
            finished(rank)
        if not todo:
            return
        path = job.folder / PIPELINE_FILE
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(executor))
        for rank in self._workers.run(run_task, [(path, rank) for rank in todo]):
            finished(rank)

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()


def run_task(task: tuple[Path, int]) -> int:
    """Run one task of a pickled pipeline in this process; return its number."""
    path, rank = task
    executor = load_executor(path, path.stat().st_mtime_ns)
    for step in executor.pipeline:
        step.stats = Stats(str(step))
    executor._run_for_rank(rank)
    return rank


@lru_cache(maxsize=1)
def load_executor(path: Path, _modified: int) -> LocalPipelineExecutor:
    """Return the pipeline, read once a process."""
    executor: LocalPipelineExecutor = pickle.loads(path.read_bytes())  # noqa: S301 - written by this command
    return executor
