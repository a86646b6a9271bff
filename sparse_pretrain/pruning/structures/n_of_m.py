"""N:M sparsity: at most N weights of every M consecutive inputs (Mishra et al. 2021: 2:4 on tensor cores)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pretrain.pruning.structure import GroupScores, Unit
from sparse_pretrain.pruning.structures.matrices import unit_of_each


@dataclass(frozen=True)
class NofM:
    """Single weights, of which the `keep` highest in every run of `of` consecutive inputs are protected.

    A run lies within one row, as the hardware's dot products do. While the target is below the pattern's
    sparsity the lowest unprotected weights go first; once all of them are gone, the pattern holds exactly.
    The last run of a row whose length is no multiple of `of` has m' < `of` weights and keeps
    min(`keep`, m') of them.

    Attributes:
        keep: weights that stay in every run; at least 1, below `of`.
        of: weights in a run.
    """

    keep: int
    of: int
    groups_are_weights = True
    protects = True

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Return one unit a weight.

        Raises:
            UserError: a weight is no matrix.
        """
        return unit_of_each(shapes, "n_of_m", lambda rows, columns: rows * columns)

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Return the scores themselves, flat, and which of them are protected."""
        values = scores(unit.name)
        rows, columns = values.shape
        whole = columns // self.of * self.of
        protected = torch.empty(rows, columns, dtype=torch.bool, device=values.device)
        runs = values[:, :whole].reshape(rows, whole // self.of, self.of)
        protected[:, :whole] = highest(runs, self.keep).reshape(rows, whole)
        protected[:, whole:] = highest(values[:, whole:], self.keep)
        return GroupScores(values.reshape(-1), 1, protected.reshape(-1))

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Return the verdicts in the weight's shape."""
        return {unit.name: keep.reshape(unit.shapes[0])}


def highest(runs: Tensor, keep: int) -> Tensor:
    """Mark the `keep` highest of the last dimension; of equal ones the later, as ties go by rising index.

    Args:
        runs: scores [..., m].
        keep: how many; all where m is not larger.

    Returns:
        Bool of the same shape.
    """
    length = runs.shape[-1]
    if length <= keep:
        return torch.ones_like(runs, dtype=torch.bool)
    # Position first: m - 1 comparisons of long rows are several times faster than sorting many short runs.
    places = runs.movedim(-1, 0).contiguous()
    better = torch.zeros_like(places, dtype=torch.uint8 if length <= 256 else torch.int32)
    for distance in range(1, length):
        later_wins = places[distance:] >= places[:-distance]
        better[:-distance] += later_wins
        better[distance:] += later_wins.logical_not_()
    return (better < keep).movedim(0, -1)
