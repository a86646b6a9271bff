"""What runs a pipeline's tasks: this machine, or datatrove's executors on a cluster, behind one small interface.

A task that is finished leaves a marker in the job's folder, so that the same job run again does the rest only, here or
elsewhere: the markers are datatrove's.
"""

import pickle
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats, Stats

from data_prep.parallel import Workers
from sparse_pretrain.files import atomic_path

PIPELINE_FILE = "pipeline.pickle"


class Job(NamedTuple):
    """A pipeline and its tasks.

    Attributes:
        name: a word or two, for logs.
        pipeline: datatrove steps; the tasks are told apart by the rank that `run` is given.
        tasks: how many.
        folder: of the job alone; markers and statistics go to its subfolder `job`, and a cluster's logs.
    """

    name: str
    pipeline: list[PipelineStep]
    tasks: int
    folder: Path

    @property
    def state(self) -> Path:
        """Where all that is about the tasks is kept."""
        return self.folder / "job"

    def marker(self, task: int) -> Path:
        """Return the file that is there once a task is finished."""
        return self.state / "completions" / f"{task:05d}"


class Engine(Protocol):
    """Runs jobs, here or elsewhere."""

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """Run the tasks that are not finished yet, in any order; return when all are.

        Args:
            job: what to run.
            finished: called with the number of every task when it is done, those done before included.
        """


class LocalEngine:
    """Runs the steps as datatrove's local executor does, in our own processes.

    That executor takes 0.7 s of imports and 25 ms a task, and after a `kill -9` it leaves a manager process behind for
    ever, while its workers finish their task first.
    """

    def __init__(self, workers: int) -> None:
        """See `parallel.Workers`; used as a context manager."""
        self._workers = Workers(workers)

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """See `Engine`."""
        todo = []
        for task in range(job.tasks):
            if job.marker(task).exists():
                finished(task)
            else:
                todo.append(task)
        if not todo:
            return
        path = job.folder / PIPELINE_FILE
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(job))
        for task in self._workers.run(run_task, [(path, task) for task in todo]):
            finished(task)

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()


def run_task(task: tuple[Path, int]) -> int:
    """Run one task of a pickled job in this process; return its number."""
    path, rank = task
    job = load_job(path, path.stat().st_mtime_ns)
    data = None
    for step in job.pipeline:
        step.stats = Stats(str(step))
        data = step(data, rank, job.tasks)
    deque(data or (), maxlen=0)
    statistics, marker = job.state / "stats" / f"{rank:05d}.json", job.marker(rank)
    for file in (statistics, marker):
        file.parent.mkdir(parents=True, exist_ok=True)
    statistics.write_text(PipelineStats(job.pipeline).to_json())
    marker.touch()
    return rank


@lru_cache(maxsize=1)
def load_job(path: Path, _modified: int) -> Job:
    """Return the job, read once a process."""
    job: Job = pickle.loads(path.read_bytes())  # noqa: S301 - written by this command
    return job
