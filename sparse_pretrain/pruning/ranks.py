"""The few collectives that pruning needs, over a torch process group or over nothing."""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(Protocol):
    """All ranks of a run; every method but `send` and `receive` must be called by all of them together."""

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

    def send(self, values: Tensor, to: int) -> None:
        """Send a tensor that rank `to` receives by a matching call."""
        ...

    def receive(self, values: Tensor, source: int) -> None:
        """Receive a tensor of known length from rank `source`, in place."""
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

    def send(self, values: Tensor, to: int) -> None:
        """There is nobody to send to."""
        raise ValueError(f"no rank {to} in a run of one rank")

    def receive(self, values: Tensor, source: int) -> None:
        """There is nobody to receive from."""
        raise ValueError(f"no rank {source} in a run of one rank")


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

    def send(self, values: Tensor, to: int) -> None:
        """Send point to point."""
        dist.send(values.contiguous(), to)

    def receive(self, values: Tensor, source: int) -> None:
        """Receive point to point."""
        dist.recv(values, source)
