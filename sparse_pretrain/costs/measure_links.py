"""Timings of collectives between the ranks of one machine."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from sparse_pretrain.costs.clock import RankStopwatch
from sparse_pretrain.costs.hardware import MeasuredLink
from sparse_pretrain.training.precision import DTYPES, Resolved
from sparse_pretrain.training.world import World

SMALL_BYTES, LARGE_BYTES = 2**12, 2**25
REPEATS = 4
SMALL_REPEATS = 20


def measure_links(world: World, precisions: list[Resolved]) -> MeasuredLink:
    """Time an all-reduce and an all-gather of a large buffer, and of a small one (collective)."""
    reduce, gather = {}, {}
    for precision in precisions:
        reduce[precision] = rate(world, precision, all_reduce)
        gather[precision] = rate(world, precision, all_gather)
    small = torch.ones(SMALL_BYTES // 4, device=world.device)
    latency = timed(world, partial(many_small, small)) / SMALL_REPEATS
    return MeasuredLink(ranks=world.size, latency=latency, all_reduce=reduce, all_gather=gather)


def rate(world: World, precision: Resolved, collective: Callable[[Tensor], object]) -> float:
    """Return seconds a byte of a large buffer."""
    dtype = DTYPES[precision]
    elements = LARGE_BYTES // dtype.itemsize // world.size * world.size
    buffer = torch.ones(elements, device=world.device, dtype=dtype)
    return timed(world, partial(collective, buffer)) / (elements * dtype.itemsize)


def all_reduce(buffer: Tensor) -> None:
    """Sum a buffer over ranks."""
    dist.all_reduce(buffer)


def many_small(buffer: Tensor) -> None:
    """Sum a small buffer again and again."""
    for _ in range(SMALL_REPEATS):
        all_reduce(buffer)


def all_gather(buffer: Tensor) -> None:
    """Fill a buffer with every rank's part of it, as ZeRO does after the step."""
    parts = list(buffer.chunk(dist.get_world_size()))
    dist.all_gather(parts, parts[dist.get_rank()].clone())


def timed(world: World, work: Callable[[], object]) -> float:
    """Return the median seconds of collective work."""
    work()
    taken = []
    for _ in range(REPEATS):
        world.barrier()
        watch = RankStopwatch(world)
        work()
        taken.append(watch.seconds())
    return max(1e-9, statistics.median(taken))
