"""The ranks of a fine-tuning run: one process alone, or those of torchrun, srun or `launch local`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch.utils.data import Sampler

from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.finetune.recipe import TrainingSection
from sparse_pretrain.training.world import World, join_world, rank_from_environment

Result = TypeVar("Result")


class Alone(World):
    """A single process, without a process group: there is nobody to wait for."""

    def __init__(self) -> None:
        """Be rank 0 of one, on the GPU if there is one."""
        super().__init__(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return [float(value) for value in values]

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def barrier(self) -> None:
        """Go on."""


def join_ranks(training: TrainingSection) -> World:
    """Join the other ranks of this run, if there are any; DeepSpeed wants a process group even for one.

    Raises:
        UserError: the batch cannot be shared equally among the ranks.
    """
    size = rank_from_environment()[1]
    rows_of_a_rank(training.batch_size, size)
    return Alone() if size == 1 and training.zero_stage is None else join_world()


def leave_ranks() -> None:
    """Leave the process group at the end of a command, if there is one: NCCL complains about those who just go."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rows_of_a_rank(batch_size: int, ranks: int) -> int:
    """Return how many examples of an optimizer step are a rank's own.

    Raises:
        UserError: the batch does not divide by the ranks.
    """
    if batch_size % ranks:
        below = batch_size // ranks * ranks
        fits = f"{below} or {below + ranks}" if below else str(ranks)
        raise UserError(
            f"training.batch_size = {batch_size}: does not divide among {ranks} ranks; use {fits}"
        )
    return batch_size // ranks


def together(world: World, action: Callable[[], Result]) -> Result:
    """Do something on every rank; what one of them raises ends all of them, instead of leaving them waiting.

    Raises:
        UserError: a rank found a user's mistake.
        Exception: what else this rank's own `action` raised.
        FailedError: another rank failed.
    """
    result, own = None, None
    try:
        result = action()
    except Exception as error:
        own = error
    said = None if own is None else (isinstance(own, UserError), str(own) or type(own).__name__)
    everybody = world.gather(said)
    if own is not None:
        raise own
    for rank, other in enumerate(everybody):
        if other is not None:
            is_mistake, message = other
            raise UserError(message) if is_mistake else FailedError(f"rank {rank} failed: {message}")
    return result  # type: ignore[return-value]


def voice(world: World, console: Console) -> Console:
    """Return the console of the rank that talks to the user, and a silent one for the others."""
    return console if world.is_first else Console(quiet=True)


class DealtBatches(Sampler[list[int]]):
    """This rank's rows of every batch: the batches are those of one process, dealt out row by row.

    A batch is of like lengths, longest first, so that every rank gets about as many tokens. Of the last batch,
    which may be smaller, ranks get unequal shares; where it has fewer rows than there are ranks, some rows
    are dealt out twice.
    """

    def __init__(self, order: Sampler[int], batch_size: int, world: World) -> None:
        """Deal out the rows in `order`, `batch_size` over all ranks."""
        super().__init__()
        self._order = order
        self._batch_size = batch_size
        self._world = world

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return -(-len(self._order) // self._batch_size)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's rows of each batch (collective)."""
        # Dropout draws from the same random numbers, and as many as a rank's batch has tokens: only one rank's
        # order can count.
        order = self._world.broadcast(list(self._order))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            yield batch[self._world.rank % len(batch) :: self._world.size]
