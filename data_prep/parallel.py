"""A function over a stream in several processes: results in order, a bounded number in flight."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_function: Callable[[Any], Any] | None = None


class Workers(Generic[Task, Result]):
    """Processes that each build a function once and apply it to tasks; with one worker, this process does.

    Used as a context manager. The results and their order do not depend on the number of workers.
    """

    def __init__(self, make: Callable[[], Callable[[Task], Result]], count: int) -> None:
        """Start nothing yet.

        Args:
            make: builds the function; picklable, called in each worker.
            count: number of processes.
        """
        self._make = make
        self._in_flight = 2 * count
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Spawned, not forked: the caller may hold threads (torch, a progress bar) that a fork breaks.
            self._pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(make,)
            )

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield the function's result for each task, in order, reading only a few tasks ahead."""
        if self._pool is None:
            yield from map(self._make(), tasks)
            return
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(self._pool.submit(_apply, task))
            if len(pending) >= self._in_flight:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def __enter__(self) -> "Workers[Task, Result]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(make: Callable[[], Callable[[Any], Any]]) -> None:
    """Build the function in a fresh worker."""
    global _function
    # Ctrl-C reaches the whole process group: the parent ends the pool, workers must not print tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One process per core already: the tokenizer's own threads would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _function = make()


def _die_with_parent() -> None:
    """End this worker when its parent is gone: a parent killed by -9 tells nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _apply(task: Any) -> Any:
    if _function is None:
        raise RuntimeError("this process is not one of the workers")
    return _function(task)
