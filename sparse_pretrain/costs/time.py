"""Seconds of a training step, term by term."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sparse_pretrain.costs.hardware import Device, KernelCost, Link
from sparse_pretrain.costs.links import all_gather_seconds, all_reduce_seconds, reduce_scatter_seconds
from sparse_pretrain.costs.work import TERMS, Work

MATMULS = ("linear", "projection")


@dataclass(frozen=True)
class Layout:
    """Where ranks are: `ranks` in all, `per_node` on each machine, `between` them."""

    ranks: int
    per_node: int
    between: Link

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.ranks // self.per_node)


@dataclass(frozen=True)
class StepTime:
    """Where a step's time goes.

    Attributes:
        terms: seconds by term, as they add up to `seconds`.
        hidden: seconds of communication behind the backward pass, not in the sum.
        limits: seconds by resource (compute, memory bandwidth, host, …), for naming the limit.
    """

    terms: dict[str, float]
    hidden: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.terms.values())


def kernel_seconds(work: Work, cost: KernelCost) -> float:
    """Return the seconds of a kernel whose constants were measured."""
    return cost.per_flop * work.flops + cost.per_element * work.elements + cost.per_call * work.calls


def roofline(work: Work, device: Device, precision: str) -> tuple[float, str]:
    """Return a kernel's seconds from data-sheet numbers, and what limits it.

    The longest of: FLOPs over the peak's reachable share, bytes over the bandwidth's, and the host's time to start it.
    """
    fraction = device.matmul_fraction if work.kernel.startswith(MATMULS) else device.attention_fraction
    limits = {
        "compute": work.flops / (device.flops[precision] * fraction),
        "memory bandwidth": work.bytes / (device.bandwidth * device.bandwidth_fraction),
        "kernel launches": work.calls * device.launch,
    }
    limit = max(limits, key=lambda name: limits[name])
    return limits[limit], limit


def work_seconds(work: Work, device: Device, precision: str) -> tuple[float, str]:
    """Return a kernel's seconds by measured constants, else by roofline, and what limits it."""
    cost = device.kernels.get(precision, {}).get(work.kernel)
    if cost is None:
        return roofline(work, device, precision)
    return device.in_step * kernel_seconds(work, cost), "compute" if work.flops else "memory bandwidth"


def slowdown(device: Device, per_node: int) -> float:
    """Return how much longer everything takes where ranks take turns on a machine's cores."""
    return max(1.0, per_node / device.cores) if device.cores else 1.0


def step_time(
    micro: Sequence[Work],
    passes: int,
    once: Sequence[Work],
    update: Sequence[Work],
    update_every: float,
    device: Device,
    precision: str,
    layout: Layout,
    stage: int,
    gradient_bytes: float,
) -> StepTime:
    """Return a step's time on the slowest rank.

    Args:
        micro: one micro-batch's work.
        passes: micro-batches a step.
        once: work of every step: optimizer, masks.
        update: work of one mask update.
        update_every: steps from one to the next, over the whole run; infinite: none.
        device: what every rank has.
        precision: of the working copy.
        layout: of the ranks.
        stage: ZeRO's.
        gradient_bytes: of all gradients in the precision that is sent.
    """
    terms: dict[str, float] = dict.fromkeys(TERMS, 0.0)
    limits: dict[str, float] = {}
    slow = slowdown(device, min(layout.per_node, layout.ranks))
    shares = [(work, float(passes)) for work in micro] + [(work, 1.0) for work in once]
    shares += [(work, 1 / update_every) for work in update]
    backward = 0.0
    for work, count in shares:
        seconds, limit = work_seconds(work, device, precision)
        terms[work.term] += count * seconds * slow
        limits[limit] = limits.get(limit, 0.0) + count * seconds * slow
    for work in micro:
        if work.term not in ("teacher", "gradients"):
            # Of forward and backward together, the backward pass is two thirds.
            backward += work_seconds(work, device, precision)[0] * 2 / 3 * slow
    exposed, hidden, sent = communication(device, precision, layout, stage, gradient_bytes, passes, backward)
    terms |= exposed
    return StepTime(terms, hidden, limits | sent)


def communication(
    device: Device, precision: str, layout: Layout, stage: int, size: float, passes: int, backward: float
) -> tuple[dict[str, float], float, dict[str, float]]:
    """Return exposed seconds by term, seconds hidden behind backward, and exposed seconds by limit.

    Stage 1 sums gradients once a step, behind nothing. Stage 2 does it in every micro-batch behind the backward pass,
    stage 3 as well; DeepSpeed's default sends an all-reduce at stages 1 and 2, a reduce-scatter at 3. Stages 1 and 2
    gather the working copy after the step; stage 3 in every forward and backward pass.
    """
    if layout.ranks == 1:
        return {}, 0.0, {}
    if stage == 3:
        one = reduce_scatter_seconds(size, device, precision, layout.ranks, layout.per_node, layout.between)
    else:
        one = all_reduce_seconds(size, device, precision, layout.ranks, layout.per_node, layout.between)
    gather = all_gather_seconds(size, device, precision, layout.ranks, layout.per_node, layout.between)
    gathers = gather * (2 * passes if stage == 3 else 1)
    reductions = one * (1 if stage == 1 else passes)
    room = 0.0 if stage == 1 else device.overlap * backward * passes
    hidden = min(reductions, room)
    left = room - hidden
    if stage == 3:
        behind = min(gathers, left + device.overlap * backward / 2 * passes)
        hidden, gathers = hidden + behind, gathers - behind
    exposed = max(0.0, reductions - (min(reductions, room)))
    name = "ZeRO-3 gathers" if stage == 3 else "gather of the working copy"
    terms = {"gradient reduction": exposed, name: gathers}
    return terms, hidden, dict(terms)


def by_term(terms: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return terms that take any time, the longest first."""
    return sorted(((name, value) for name, value in terms.items() if value > 0), key=lambda pair: -pair[1])
