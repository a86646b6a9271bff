"""Several ranks as threads of one process: collectives without processes, for property tests."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Group:
    """What the threads share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.slots: list[tuple[str, torch.dtype, Tensor] | None] = [None] * size


class LockStepRanks:
    """One thread's `Ranks`."""

    def __init__(self, rank: int, group: Group) -> None:
        self.rank = rank
        self.size = group.size
        self._group = group

    def _everyone(self, values: Tensor, operation: str) -> list[Tensor]:
        """Exchange with ranks that do the same: a rank that does something else fails the test."""
        self._group.slots[self.rank] = (operation, values.dtype, values.clone())
        self._group.barrier.wait()
        found = [slot for slot in self._group.slots if slot is not None]
        assert len({(name, dtype) for name, dtype, _ in found}) == 1, found
        copies = [value.clone() for _, _, value in found]
        self._group.barrier.wait()
        return copies

    def sum(self, values: Tensor) -> Tensor:
        parts = self._everyone(values, f"sum {list(values.shape)}")
        values.copy_(sum(parts[1:], parts[0]))
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        return self._everyone(values, "gather")

    def collect(self, values: Tensor, lengths: Sequence[int], owner: int) -> list[Tensor] | None:
        parts = self._everyone(values, f"collect {list(lengths)} to {owner}")
        assert [len(part) for part in parts] == list(lengths)
        return parts if self.rank == owner else None


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
