"""The ranks of a run: who am I, how many are we, and the few collectives the loop needs."""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among the run's processes; `device` is where its model lives."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that talks to the user and writes shared files."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""
        return gather_objects(value)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0 only; return its result, or raise its error, on every rank.

        Raises:
            Exception: what `action` raised; ranks that go on alone would wait for rank 0 for ever.
        """
        outcome: Any = None
        if self.is_first:
            try:
                outcome = action()
            except Exception as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's value (small, picklable), in the order of ranks, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def rank_from_environment() -> tuple[int, int, int]:
    """Return (rank, world size, local rank) of torchrun's variables, SLURM's, or of a run of one."""
    environment = os.environ
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environment and "MASTER_ADDR" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return 0, 1, 0
    return int(environment[names[0]]), int(environment[names[1]]), int(environment.get(names[2], "0"))


def join_world() -> World:
    """Join the process group that the environment describes (env:// rendezvous; alone when there is none)."""
    rank, size, local_rank = rank_from_environment()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank))
    if size == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(free_port()))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=size)
    return World(rank, size, local_rank, device)


def free_port() -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
