"""The few collectives that pruning needs, over a torch process group or over nothing."""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(Protocol):
    """All ranks of a run; every method must be called by all of them together."""

    @property
    def rank(self) -> int:
        """This rank, counted from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Add up `values` over the ranks, in place; return them."""
        ...

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return every rank's 1-D tensor, in rank order; lengths may differ, dtypes may not."""
        ...

    def collect(self, values: Tensor, lengths: Sequence[int], owner: int) -> list[Tensor] | None:
        """Bring every rank's 1-D tensor to one rank.

        Args:
            values: this rank's, perhaps empty.
            lengths: of all ranks' tensors; every rank knows them.
            owner: the rank that gets them.

        Returns:
            All tensors in rank order on the owner, None elsewhere.
        """
        ...


class OneRank:
    """A run of one rank: nothing to exchange."""

    rank = 0
    size = 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the values as those of the only rank."""
        return [values]

    def collect(self, values: Tensor, lengths: Sequence[int], owner: int) -> list[Tensor] | None:
        """Return the values as those of the only rank."""
        return [values]


class ProcessGroupRanks:
    """The default process group of torch."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce in place."""
        dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """All-gather lengths, then values padded to the longest."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=values.device)
        lengths[self.rank] = values.numel()
        dist.all_reduce(lengths)
        counts = [int(length) for length in lengths.tolist()]
        padded = values.new_zeros(max(counts))
        padded[: values.numel()] = values
        everyone = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(everyone, padded)
        return [part[:count] for part, count in zip(everyone, counts, strict=True)]

    def collect(self, values: Tensor, lengths: Sequence[int], owner: int) -> list[Tensor] | None:
        """Send everything to one rank by an all-to-all: one communicator, whoever the owner is."""
        mine = self.rank == owner
        arriving = list(lengths) if mine else [0] * self.size
        leaving = [values.numel() if rank == owner else 0 for rank in range(self.size)]
        received = values.new_empty(sum(arriving))
        dist.all_to_all_single(received, values.contiguous(), arriving, leaving)
        return list(received.split(arriving)) if mine else None
