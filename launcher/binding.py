"""Which cores each rank of this machine gets.

Ranks that wander over all cores push each other's data out of caches and, on a machine with several NUMA nodes,
compute far from the memory that they have filled. On busy cores two of them end up on one: with two ranks on two
cores that others used too, a step took 40 ms unbound and 17 ms bound (medians, in turns within one run).

Memory needs no rule of its own: the kernel takes it from the node on which a rank first writes to it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from launcher.topology import Core

# Who sets one of these places threads by numbers of CPUs of the whole machine.
PLACED_BY_USER = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def plan_binding(
    cores: Sequence[Core], ranks: int, homes: Sequence[int | None] = ()
) -> tuple[frozenset[int], ...]:
    """Share cores among ranks: disjoint, hardware threads of a core together, neighbours on one NUMA node.

    All ranks get the same number of cores, or some one more: they wait for each other at every step, so
    that a rank with fewer would hold up the others. A rank spans two nodes only where the ranks do not divide
    among them. Ranks whose GPUs' nodes are all known share those nodes' cores instead.

    Args:
        cores: what there is, by node.
        ranks: how many, at least 1.
        homes: the NUMA node of each rank's GPU, None where unknown; empty without GPUs.

    Returns:
        CPU numbers of each rank; empty when there are fewer cores than ranks: the kernel shares them better.
    """
    if len(cores) < ranks:
        return ()
    return near_gpus(cores, homes[:ranks]) or shares(cores, ranks)


def near_gpus(cores: Sequence[Core], homes: Sequence[int | None]) -> tuple[frozenset[int], ...]:
    """Share each node's cores among the ranks whose GPUs are there; empty when that does not work out."""
    binding: dict[int, frozenset[int]] = {}
    for home in set(homes):
        here = [rank for rank, node in enumerate(homes) if node == home]
        near = [core for core in cores if core.node == home]
        if home is None or len(near) < len(here):
            return ()
        binding |= dict(zip(here, shares(near, len(here)), strict=True))
    return tuple(binding[rank] for rank in range(len(homes)))


def shares(cores: Sequence[Core], ranks: int) -> tuple[frozenset[int], ...]:
    """Cut a list of cores into as many stretches as there are ranks; they differ by one core at most."""
    ends = [rank * len(cores) // ranks for rank in range(ranks + 1)]
    return tuple(
        frozenset(thread for core in cores[first:last] for thread in core.threads)
        for first, last in pairwise(ends)
    )


def is_placed_by_user(environment: Mapping[str, str]) -> bool:
    """Say whether the user places threads already; a smaller set of cores (`taskset`) is shared, not a reason."""
    return any(environment.get(name) for name in PLACED_BY_USER)
