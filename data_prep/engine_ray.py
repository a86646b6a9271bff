"""The same jobs on a Ray cluster: datatrove's Ray executor behind our interface; needs the extra `ray`.

Every task is an actor of its own with one core. This process waits for them; killed and started again, it runs what is
not finished.
"""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datatrove.executor.ray import RayPipelineExecutor

from data_prep.engine import Job
from sparse_pretrain.errors import FailedError, UserError

# Of a task: its tokens, its windows of documents and one shard lie far below.
MEMORY_GB = 2
POLL_SECONDS = 1.0
CONNECT_SECONDS = 10.0
VARIABLES = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class RayExecutor(RayPipelineExecutor):
    """datatrove's executor, whose tasks see relative paths from where this process does."""

    folder: str

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        os.chdir(self.folder)
        return super()._run_for_rank(rank, local_rank, node_rank)


class RayEngine:
    """Runs jobs on the cluster that this process is connected to; see `ray_engine`."""

    def run(self, job: Job, finished: Callable[[int], None]) -> None:
        """See `engine.Engine`.

        Raises:
            FailedError: Ray ends before all tasks are done.
        """
        executor = RayExecutor(
            pipeline=job.pipeline,
            tasks=job.tasks,
            logging_dir=str(Path(job.state).absolute()),
            mem_per_cpu_gb=MEMORY_GB,
        )
        executor.folder = str(Path.cwd())
        open_tasks = set(range(job.tasks))

        def tell() -> None:
            for rank in sorted(open_tasks - set(executor.get_incomplete_ranks())):
                open_tasks.remove(rank)
                finished(rank)

        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(executor.run)
            while not running.done():
                wait([running], timeout=POLL_SECONDS)
                tell()
            running.result()
        if open_tasks:
            raise FailedError(
                f"{job.name!r}: Ray ended with {len(open_tasks):,} of {job.tasks:,} tasks undone; what they said: "
                f"{job.state}/logs; what is done is kept: run again"
            )


@contextmanager
def ray_engine(address: str) -> Iterator[RayEngine]:
    """Connect to a Ray cluster for as long as the context lasts.

    Args:
        address: of its head; `auto` for the one that this machine belongs to, `local` to start one here.

    Raises:
        UserError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray: Ray is not usable ({error}): pip install 'sparse-pretrain[ray]'") from None
    if address not in ("local", "auto"):
        check_reachable(address)
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(
            address,
            runtime_env={"env_vars": VARIABLES},
            log_to_driver=False,
            logging_level="ERROR",
            **options,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or ["no answer"])[0]
        raise UserError(
            f"--ray {address}: {first}; give local, auto or HOST:PORT of a running cluster"
        ) from None
    try:
        yield RayEngine()
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Check that somebody listens at HOST:PORT, where Ray itself would wait for minutes.

    Raises:
        UserError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"--ray {address}: {error}; give local, auto or HOST:PORT of a running cluster"
        ) from None
