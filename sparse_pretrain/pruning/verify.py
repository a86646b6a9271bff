"""Proof that the weights obey their masks."""

from collections.abc import Iterable

import torch

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.weights import WeightAccess


class BrokenWeightsError(RuntimeError):
    """A weight is not what its mask says, or not a number; the message names the layer."""


def verify(masks: MaskSet, weights: WeightAccess, frozen: bool) -> None:
    """Check every prunable weight against its mask (collective; each rank checks what it holds).

    The copy that forward uses must be zero wherever the mask prunes; behind the freeze the fp32 master
    must be, too. All ranks must hold the same masks.

    Raises:
        BrokenWeightsError: on every rank, with the first layer that fails and how.
    """
    faults = torch.zeros(len(masks), 2, dtype=torch.int64, device=weights.device)
    for row, name in enumerate(masks):
        start, working = weights.working(name)
        if working.numel():
            pruned = ~masks.part(name, start, working.numel())
            faults[row, 0] = torch.count_nonzero(working[pruned])
        part = weights.part(name)
        if frozen and part is not None:
            pruned = ~masks.part(name, part.start, part.master.numel())
            faults[row, 1] = torch.count_nonzero(part.master[pruned])
    kinds = (
        "weights outside the mask are not zero in the copies that forward uses (over all ranks)",
        "weights outside the frozen mask are not zero in the fp32 master",
    )
    for name, counts in zip(masks, weights.ranks.sum(faults).tolist(), strict=True):
        for count, kind in zip(counts, kinds, strict=True):
            if count:
                raise BrokenWeightsError(f"{name}: {count:,} {kind}")
    if not same_everywhere(masks, weights):
        raise BrokenWeightsError("ranks hold different masks")


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
