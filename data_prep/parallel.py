"""Tasks in several processes, which end with their parent whatever ends it."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from types import ModuleType
from typing import TypeVar

from sparse_pretrain.errors import FailedError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Workers:
    """Processes that are started when there is work for two; with one worker, this process does it."""

    def __init__(self, count: int) -> None:
        """Start nothing yet; `count` is the number of processes."""
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the function's results as they come; nothing is left running when one fails.

        Raises:
            FailedError: a worker was killed.
        """
        if self._count == 1 or len(tasks) < 2:
            yield from map(function, tasks)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._count, worker_context(), initializer=_start_worker)
        with _no_main_module():
            futures = [self._pool.submit(function, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise FailedError(
                "a worker process was killed, likely for want of memory: run again with fewer workers; "
                "what is done is kept"
            ) from None
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes after the task that each is at."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def worker_context() -> BaseContext:
    """Return how workers are started: as forks of a fresh process that has imported what they need.

    Not as forks of the caller, which may hold threads (torch, a progress bar) that a fork breaks.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.worker_imports"])
    return context


def warm_up(count: int) -> None:
    """Begin, in the background, the imports of workers that are needed soon; one worker needs none."""
    if count > 1:
        worker_context()
        forkserver.ensure_running()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Start processes that do not import the program's main module again: 0.3 s of a core each, for nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """Prepare a fresh worker."""
    # Ctrl-C reaches the whole process group: the parent ends the pool, workers must not print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process per core already: the tokenizer's own threads would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # What the imports made stays; of the millions of strings and arrays to come hardly one is in a cycle.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent is gone: a parent killed by -9 tells nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
