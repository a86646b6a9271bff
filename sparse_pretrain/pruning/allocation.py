"""Which weights to keep, given scores and a share to prune."""

import torch
from torch import Tensor


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """Return the mask that prunes exactly `round(sparsity * numel)` weights with the lowest scores.

    Uniform allocation: every weight matrix gets the same share (Prune Once for All, section 4).
    Ties are pruned in the order of their flat index, so the result is the same on every machine.

    Args:
        scores: float tensor of any shape, no NaN.
        sparsity: in [0, 1].

    Returns:
        bool tensor of the same shape, True = kept.

    Raises:
        ValueError: a score is NaN.
    """
    flat = scores.reshape(-1)
    if bool(torch.isnan(flat).any()):
        raise ValueError("a score is NaN: the weights are broken, no mask can be drawn from them")
    pruned = round(sparsity * flat.numel())
    if pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(pruned).values
    keep = flat > threshold
    ties = torch.nonzero(flat == threshold).squeeze(1)
    lower = int((flat < threshold).sum())
    keep[ties[pruned - lower :]] = True
    return keep.reshape(scores.shape)
