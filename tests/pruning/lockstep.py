"""Several ranks as threads of one process: collectives without processes, for property tests."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Group:
    """What the threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[Tensor | None] = [None] * size
        self.mail: dict[tuple[int, int], Queue[Tensor]] = {
            (source, to): Queue() for source in range(size) for to in range(size)
        }


class LockStepRanks:
    """One thread's `Ranks`."""

    def __init__(self, rank: int, group: Group) -> None:
        self.rank = rank
        self.size = group.size
        self._group = group

    def _everyone(self, values: Tensor) -> list[Tensor]:
        self._group.slots[self.rank] = values.clone()
        self._group.barrier.wait()
        found = [slot.clone() for slot in self._group.slots if slot is not None]
        self._group.barrier.wait()
        return found

    def sum(self, values: Tensor) -> Tensor:
        parts = self._everyone(values)
        values.copy_(sum(parts[1:], parts[0]))
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        return self._everyone(values)

    def send(self, values: Tensor, to: int) -> None:
        self._group.mail[self.rank, to].put(values.clone())

    def receive(self, values: Tensor, source: int) -> None:
        values.copy_(self._group.mail[source, self.rank].get(timeout=20))


def run_ranks(size: int, function: Callable[[LockStepRanks], Result]) -> list[Result]:
    """Call `function(ranks)` on `size` ranks at once; return the results in rank order."""
    group = Group(size)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(function, LockStepRanks(rank, group)) for rank in range(size)]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return [future.result() for future in futures]
