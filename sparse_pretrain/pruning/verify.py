"""Proof that the weights obey their masks."""

import torch

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.weights import WeightAccess


class MaskViolationError(RuntimeError):
    """A weight is not what its mask says, or not a number; the message names the layer."""


def verify(masks: MaskSet, weights: WeightAccess, frozen: bool) -> None:
    """Check every prunable weight against its mask (collective; each rank checks what it holds).

    The copy that forward uses must be zero wherever the mask prunes; behind the freeze the fp32 master
    must be, too. No master may be NaN or infinite. All ranks must hold the same masks.

    Raises:
        MaskViolationError: on every rank, with the first layer that fails and how.
    """
    faults = torch.zeros(len(masks), 3, dtype=torch.int64, device=weights.device)
    for row, name in enumerate(masks):
        start, working = weights.working(name)
        if working.numel():
            pruned = ~masks.part(name, start, working.numel())
            faults[row, 0] = torch.count_nonzero(working[pruned])
        part = weights.part(name)
        if part is None:
            continue
        faults[row, 1] = torch.count_nonzero(~torch.isfinite(part.master))
        if frozen:
            pruned = ~masks.part(name, part.start, part.master.numel())
            faults[row, 2] = torch.count_nonzero(part.master[pruned])
    kinds = (
        "weights outside the mask are not zero in the copy that forward uses",
        "weights are NaN or infinite",
        "weights outside the frozen mask are not zero in the fp32 master",
    )
    for name, counts in zip(masks, weights.ranks.sum(faults).tolist(), strict=True):
        for count, kind in zip(counts, kinds, strict=True):
            if count:
                raise MaskViolationError(f"{name}: {count:,} {kind}")
    if not same_everywhere(masks, weights):
        raise MaskViolationError("ranks hold different masks")


def same_everywhere(masks: MaskSet, weights: WeightAccess) -> bool:
    """Say whether all ranks hold the same masks, by their digests (collective)."""
    digest = torch.tensor(list(bytes.fromhex(masks.digest())), dtype=torch.uint8, device=weights.device)
    return len({bytes(other.tolist()) for other in weights.ranks.gather(digest)}) == 1
