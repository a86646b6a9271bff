"""Latency and bandwidth between ranks, by the collectives that training uses."""

import time
from collections.abc import Sequence
from itertools import combinations
from statistics import median, median_high

import torch
import torch.distributed as dist

from sparse_pretrain.preflight.findings import Finding
from sparse_pretrain.training.world import World

SMALL_ROUNDS = 20
LARGE_BYTES = 8 * 2**20
LARGE_ROUNDS = 3
PAIR_BYTES = 2 * 2**20
PAIR_ROUNDS = 4
# What takes longer is slow enough to be known: it is not measured again and again.
ENOUGH_SECONDS = 0.5
# Of 16 machines all 120 pairs are measured, one after the other; of more each with its neighbour only.
ALL_PAIRS_UP_TO = 16
SLOWER = 3.0
# Between two machines nothing is there to compare with; less than a fifth of Gigabit Ethernet is a mistake.
LEAST_RATE = 20e6
FEW = 4

Pair = tuple[int, int]


def measure_all_reduce(world: World) -> dict[str, float]:
    """Return `all_reduce_seconds` for 8 bytes and `all_reduce_bytes_per_second` for large ones (collective).

    The latter is the size divided by the time, whatever the number of ranks.
    """
    small = torch.zeros(2, dtype=torch.float32, device=world.device)
    large = torch.zeros(LARGE_BYTES // 4, dtype=torch.float32, device=world.device)
    return {
        "all_reduce_seconds": median_seconds(small, SMALL_ROUNDS),
        "all_reduce_bytes_per_second": LARGE_BYTES / median_seconds(large, LARGE_ROUNDS),
    }


def median_seconds(tensor: torch.Tensor, rounds: int) -> float:
    """Return what an all-reduce takes, the first one, which opens connections, aside.

    Where that takes longer than `ENOUGH_SECONDS`, it is the answer (collective).
    """
    first = seconds_of_all_reduce(tensor)
    slowest = torch.tensor([first], dtype=torch.float64, device=tensor.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    if float(slowest[0]) > ENOUGH_SECONDS:
        return first
    return median(seconds_of_all_reduce(tensor) for _ in range(rounds))


def seconds_of_all_reduce(tensor: torch.Tensor) -> float:
    """Return what one all-reduce takes."""
    started = time.perf_counter()
    dist.all_reduce(tensor)
    # Reading a value waits for a GPU too.
    float(tensor[0])
    return time.perf_counter() - started


def pairs_to_measure(hosts: Sequence[str]) -> list[Pair]:
    """Return which ranks to measure against each other: the first ones of each two machines.

    Args:
        hosts: of all ranks, in their order.
    """
    leaders = [hosts.index(host) for host in dict.fromkeys(hosts)]
    if len(leaders) <= ALL_PAIRS_UP_TO:
        return list(combinations(leaders, 2))
    return list(zip(leaders, [*leaders[1:], leaders[0]], strict=True))


def measure_pairs(world: World, pairs: Sequence[Pair]) -> dict[Pair, float]:
    """Return bytes a second between pairs of ranks, there and back, on every rank (collective)."""
    mine = {}
    for pair in pairs:
        # One pair at a time: they would share the cables.
        if world.rank in pair:
            mine[pair] = measure_pair(world, pair)
        world.barrier()
    merged: dict[Pair, float] = {}
    for found in world.gather(mine):
        merged |= found
    return merged


def measure_pair(world: World, pair: Pair) -> float:
    """Return bytes a second between this rank and the other one of a pair."""
    first, second = pair
    tensor = torch.zeros(PAIR_BYTES // 4, dtype=torch.float32, device=world.device)
    seconds: list[float] = []
    while len(seconds) < PAIR_ROUNDS and float(tensor[0]) == 0:
        if world.rank == first and seconds and seconds[-1] > ENOUGH_SECONDS:
            # Tells the other rank too that this is the last round.
            tensor[0] = 1
        started = time.perf_counter()
        if world.rank == first:
            dist.send(tensor, second)
            dist.recv(tensor, second)
        else:
            dist.recv(tensor, first)
            dist.send(tensor, first)
        float(tensor[0])
        seconds.append(time.perf_counter() - started)
    return 2 * PAIR_BYTES / median(seconds[1:])


def slow_network(rates: dict[Pair, float], hosts: Sequence[str]) -> list[Finding]:
    """Return machines whose every connection is slow, slow connections of others, or that all of them are.

    A machine is judged by its best connection, so that it is not blamed for those that it is connected to.

    Args:
        rates: bytes a second between pairs of ranks, one rank a machine.
        hosts: of all ranks, in their order.
    """
    best: dict[int, float] = {}
    for pair, rate in rates.items():
        for rank in pair:
            best[rank] = max(rate, best.get(rank, 0.0))
    if not best:
        return []
    middle = median_high(best.values())
    if middle < LEAST_RATE:
        machines = ", ".join(hosts[rank] for rank in sorted(best)[:FEW]) + " and more" * (len(best) > FEW)
        return [
            Finding(
                "network",
                "warning",
                f"{machines} exchange no more than {megabytes(middle)}",
                "have ranks use a faster network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
            )
        ]
    slow = {rank for rank, rate in best.items() if rate * SLOWER < middle}
    findings = [
        Finding(
            "network",
            "warning",
            f"exchanges no more than {megabytes(best[rank])} with any other machine, most reach {megabytes(middle)}",
            "look at its cable and its interface, or leave it out (sbatch --exclude)",
            rank,
            hosts[rank],
        )
        for rank in sorted(slow)
    ]
    findings += [
        Finding(
            "network",
            "warning",
            f"{hosts[first]} and {hosts[second]} exchange {megabytes(rate)}, with others both reach "
            f"{megabytes(min(best[first], best[second]))}",
            "look at the switch between them, or leave one of them out (sbatch --exclude)",
            first,
            hosts[first],
        )
        for (first, second), rate in rates.items()
        if not slow & {first, second} and rate * SLOWER < min(best[first], best[second])
    ]
    return findings


def megabytes(rate: float) -> str:
    """Return bytes a second for people."""
    return f"{rate / 1e6:,.1f} MB/s"
