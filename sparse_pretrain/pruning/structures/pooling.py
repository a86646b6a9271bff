"""One score for many weights: mean, max or l2, over any cut of them.

A pooled score is built in three moves, so that a group may be spread over rows, ragged edges and several
weights: `measure` every score, `combine` along a dimension (as often as needed), `finish` by the group's
size. Sums run in float64: what is left of the order of summation lies far below a float32 step.

* mean: sum / n;
* max: the highest;
* l2: sqrt(sum of squares / n), the root mean square: unlike the plain norm it compares a small block at a
  ragged edge with a whole one fairly.

n counts the weights that are really in the group.
"""

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import Pool


def measure(scores: Tensor, pool: Pool) -> Tensor:
    """Return what is added up (float64: scores, or their squares for l2) or compared (the scores, for max)."""
    if pool == "max":
        return scores
    wide = scores.to(torch.float64, copy=True)
    return wide.square_() if pool == "l2" else wide


def combine(measures: Tensor, dim: int, pool: Pool) -> Tensor:
    """Reduce one dimension."""
    return measures.amax(dim) if pool == "max" else measures.sum(dim)


def combine_runs(measures: Tensor, dim: int, length: int, pool: Pool) -> Tensor:
    """Reduce every run of `length` consecutive entries of a dimension to one; the last run may be shorter."""
    size = measures.shape[dim]
    whole = size // length * length
    parts = []
    if whole:
        runs = measures.narrow(dim, 0, whole).unflatten(dim, (whole // length, length))
        parts.append(combine(runs, dim + 1, pool))
    if whole < size:
        parts.append(combine(measures.narrow(dim, whole, size - whole), dim, pool).unsqueeze(dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def merge(one: Tensor, other: Tensor, pool: Pool) -> Tensor:
    """Join what two weights contribute to the same groups."""
    return torch.maximum(one, other) if pool == "max" else one + other


def finish(total: Tensor, sizes: Tensor | int, pool: Pool) -> Tensor:
    """Return float32 scores of groups with `sizes` weights each."""
    if pool == "max":
        return total.to(torch.float32)
    mean = total / sizes
    return (mean.sqrt_() if pool == "l2" else mean).to(torch.float32)
