"""Rectangular blocks (4x1, 1x4, 16x16, …), each kept or pruned whole."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import Pool
from sparse_pretrain.pruning.structure import GroupScores, Unit
from sparse_pretrain.pruning.structures.matrices import unit_of_each
from sparse_pretrain.pruning.structures.pooling import combine_runs, finish, measure


@dataclass(frozen=True)
class Blocks:
    """A grid of blocks from the upper left corner of every weight, numbered row-major.

    Where the weight's sides are no multiples of the block's, the blocks at the right and lower edges are
    smaller and count with the weights they really have: nothing is padded, no weight is left out.

    Attributes:
        rows: height of a block, along the outputs.
        columns: width of a block, along the inputs.
        pooling: a block's score from its weights' scores.
    """

    rows: int
    columns: int
    pooling: Pool = "mean"
    groups_are_weights = False
    protects = False

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Return one unit a weight.

        Raises:
            UserError: a weight is no matrix.
        """
        return unit_of_each(
            shapes, "block", lambda rows, columns: -(-rows // self.rows) * -(-columns // self.columns)
        )

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Pool every block's scores."""
        measures = measure(scores(unit.name), self.pooling)
        strips = combine_runs(measures, 1, self.columns, self.pooling)
        totals = combine_runs(strips, 0, self.rows, self.pooling).reshape(-1)
        sizes = self._sizes(unit.shapes[0], totals.device)
        return GroupScores(finish(totals, sizes, self.pooling), sizes)

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Give every weight of a block the block's verdict."""
        rows, columns = unit.shapes[0]
        grid = keep.reshape(-(-rows // self.rows), -(-columns // self.columns))
        wide = grid.repeat_interleave(self.columns, 1)[:, :columns]
        return {unit.name: wide.repeat_interleave(self.rows, 0)[:rows]}

    def _sizes(self, shape: torch.Size, device: torch.device) -> Tensor | int:
        rows, columns = shape
        if rows % self.rows == 0 and columns % self.columns == 0:
            return self.rows * self.columns
        heights, widths = _runs(rows, self.rows, device), _runs(columns, self.columns, device)
        return torch.outer(heights, widths).reshape(-1)


def _runs(size: int, length: int, device: torch.device) -> Tensor:
    """Return the lengths of the runs that `size` entries are cut into; int64 [runs]."""
    starts = torch.arange(0, size, length, device=device)
    return (size - starts).clamp_(max=length)
