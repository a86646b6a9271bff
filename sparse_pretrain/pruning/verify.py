"""Proof that the weights obey their masks."""

import math
from collections.abc import Iterable

import torch

from sparse_pretrain.pruning.bits import count_outside
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.weights import WeightAccess


class BrokenWeightsError(RuntimeError):
    """A weight is not what its mask says, or not a number; the message names the layer."""


def find_fault(masks: MaskSet, weights: WeightAccess, frozen: bool) -> str | None:
    """Check every prunable weight that this rank holds against its mask; not collective.

    The copy that forward uses must be zero wherever the mask prunes; behind the freeze the fp32 master
    must be, too.

    Returns:
        The first layer that fails and how, or None.
    """
    for name in masks:
        start, working = weights.working(name)
        count = count_outside(working, masks.part(name, start, working.numel()))
        if count:
            return f"{name}: {count:,} weights outside the mask are not zero in the copy that forward uses"
        part = weights.part(name) if frozen else None
        if part is None:
            continue
        count = count_outside(part.master, masks.part(name, part.start, part.master.numel()))
        if count:
            return f"{name}: {count:,} weights outside the frozen mask are not zero in the fp32 master"
    return None


def find_not_finite(names: Iterable[str], weights: WeightAccess) -> str | None:
    """Return the first of these parameters whose fp32 master has a NaN or infinity on this rank, or None."""
    for name in names:
        part = weights.part(name)
        # The extremes are not finite when a value is not; looking at each value takes twenty times as long.
        if part is not None and not all(math.isfinite(end) for end in torch.aminmax(part.master)):
            count = int(torch.count_nonzero(~torch.isfinite(part.master)))
            return f"{name}: {count:,} weights are NaN or infinite"
    return None


def check_finite(names: Iterable[str], weights: WeightAccess) -> None:
    """Check that no fp32 master of these parameters is NaN or infinite (collective).

    Raises:
        BrokenWeightsError: on every rank, with the first parameter that has one.
    """
    ordered = list(names)
    faults = torch.zeros(len(ordered), dtype=torch.int64, device=weights.device)
    for row, name in enumerate(ordered):
        part = weights.part(name)
        if part is not None:
            faults[row] = torch.count_nonzero(~torch.isfinite(part.master))
    for name, count in zip(ordered, weights.ranks.sum(faults).tolist(), strict=True):
        if count:
            raise BrokenWeightsError(f"{name}: {count:,} weights are NaN or infinite")


def same_everywhere(masks: MaskSet, weights: WeightAccess) -> bool:
    """Say whether all ranks hold the same masks, by their digests (collective)."""
    digest = torch.tensor(list(bytes.fromhex(masks.digest())), dtype=torch.uint8, device=weights.device)
    return len({bytes(other.tolist()) for other in weights.ranks.gather(digest)}) == 1
