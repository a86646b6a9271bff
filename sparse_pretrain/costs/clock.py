"""Time that other processes' use of the machine does not lengthen, and a process's peak memory."""

import os
import resource
import time
from pathlib import Path

import torch

from sparse_pretrain.bench.clock import synchronise
from sparse_pretrain.training.world import World

SCHEDULE = Path("/proc/thread-self/schedstat")
NANOSECOND = 1e-9


class Stopwatch:
    """Seconds since it was made, without those in which this thread was ready but another one had its core.

    On a GPU, seconds between two synchronisations. Linux counts the waiting in `schedstat` (second number);
    where there is no such file, it is wall time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        synchronise(device)
        self._waited = waited_seconds(device)
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        synchronise(self._device)
        spent = time.perf_counter() - self._began
        return spent - (waited_seconds(self._device) - self._waited)


def waited_seconds(device: torch.device) -> float:
    """Return how long this thread has waited for a core so far; 0 on a GPU, whose clock this is not."""
    if device.type != "cpu" or not SCHEDULE.is_file():
        return 0.0
    return int(SCHEDULE.read_text(encoding="ascii").split()[1]) * NANOSECOND


def peak_bytes(device: torch.device) -> int:
    """Return the most memory this process has held: of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


class RankStopwatch:
    """Seconds of what ranks do together, had they the machine to themselves.

    On GPUs the slowest rank's time between synchronisations. On CPUs, where other processes may have cores meanwhile,
    processor time: the busiest rank's, or all ranks' over the cores where these are fewer. That leaves out what a rank
    sleeps for the network or for another rank that has more to do.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        synchronise(world.device)
        self._began = self._now()

    def seconds(self) -> float:
        """Return the seconds so far, the same on every rank (collective)."""
        synchronise(self._world.device)
        spent = [float(value) for value in self._world.gather(self._now() - self._began)]
        if self._world.device.type != "cpu":
            return max(spent)
        return max(max(spent), sum(spent) / min(len(spent), usable_cores()))

    def _now(self) -> float:
        return time.process_time() if self._world.device.type == "cpu" else time.perf_counter()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
