"""Seconds of collectives between ranks: rings inside a machine and between machines.

An all-reduce of S bytes on n ranks sends 2 (n - 1) / n S from each of them, a reduce-scatter and an all-gather half of
that (Thakur et al. 2005, sections 3 and 4; Patarasuk and Yuan 2009). Over several machines NCCL does it in levels:
inside each machine, then each rank's 1 / g of the data between machines, over its share of the machine's adapters.
"""

import math

from sparse_pretrain.costs.hardware import Device, Link, MeasuredLink


def ring_seconds(size: float, ranks: int, rate: float, latency: float) -> float:
    """Return the seconds of a reduce-scatter or an all-gather of `size` bytes in all over one ring.

    Large messages travel the ring; for latency NCCL has trees, of logarithmic depth.
    """
    if ranks <= 1:
        return 0.0
    return size * (ranks - 1) / ranks / rate + latency * math.ceil(math.log2(ranks))


def half_seconds(size: float, device: Device, ranks: int, per_node: int, between: Link) -> float:
    """Return the seconds of a reduce-scatter, or of an all-gather, in levels."""
    inside = min(ranks, per_node)
    nodes = -(-ranks // per_node)
    seconds = ring_seconds(size, inside, device.local.rate, device.local.latency)
    # All ranks of a machine send their 1 / inside at once, over adapters that they share.
    return seconds + ring_seconds(size, nodes, between.rate, between.latency)


def measured_link(device: Device, ranks: int, per_node: int) -> MeasuredLink | None:
    """Return what was measured of as many ranks on one machine; None when it was not, or there are several machines."""
    if ranks > per_node:
        return None
    return next((link for link in device.local_measured if link.ranks == ranks), None)


def all_reduce_seconds(
    size: float, device: Device, precision: str, ranks: int, per_node: int, between: Link
) -> float:
    """Return the seconds of an all-reduce of `size` bytes."""
    measured = measured_link(device, ranks, per_node)
    if measured is not None and precision in measured.all_reduce:
        return measured.latency + size * measured.all_reduce[precision]
    return 2 * half_seconds(size, device, ranks, per_node, between)


def reduce_scatter_seconds(
    size: float, device: Device, precision: str, ranks: int, per_node: int, between: Link
) -> float:
    """Return the seconds of a reduce-scatter of `size` bytes in all; gloo's is an all-reduce."""
    measured = measured_link(device, ranks, per_node)
    if measured is not None and device.kind == "cpu" and precision in measured.all_reduce:
        return measured.latency + size * measured.all_reduce[precision]
    return half_seconds(size, device, ranks, per_node, between)


def all_gather_seconds(
    size: float, device: Device, precision: str, ranks: int, per_node: int, between: Link
) -> float:
    """Return the seconds of an all-gather of `size` bytes in all."""
    measured = measured_link(device, ranks, per_node)
    if measured is not None and precision in measured.all_gather:
        return measured.latency + size * measured.all_gather[precision]
    return half_seconds(size, device, ranks, per_node, between)
