"""Whole rows (output neurons) or whole columns (input neurons) of a weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import Pool
from sparse_pretrain.pruning.structure import GroupScores, Unit
from sparse_pretrain.pruning.structures.matrices import unit_of_each
from sparse_pretrain.pruning.structures.pooling import combine, finish, measure


@dataclass(frozen=True)
class Lines:
    """Rows or columns of every weight [outputs, inputs], each weight by itself.

    Attributes:
        direction: which of them.
        pooling: a line's score from its weights' scores.
    """

    direction: Literal["rows", "columns"]
    pooling: Pool = "mean"
    groups_are_weights = False
    protects = False

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Return one unit a weight.

        Raises:
            UserError: a weight is no matrix.
        """
        return unit_of_each(shapes, self.direction, lambda *sides: sides[self._axis])

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Pool every line's scores."""
        across = 1 - self._axis
        totals = combine(measure(scores(unit.name), self.pooling), across, self.pooling)
        size = unit.shapes[0][across]
        return GroupScores(finish(totals, size, self.pooling), size)

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Give every weight of a line the line's verdict."""
        return {unit.name: keep.unsqueeze(1 - self._axis).expand(unit.shapes[0]).contiguous()}

    @property
    def _axis(self) -> int:
        return 0 if self.direction == "rows" else 1
