"""Single weights: unstructured pruning."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sparse_pretrain.pruning.structure import GroupScores, Unit


class Element:
    """Every weight is a group of its own, in row-major order; weights of any shape."""

    groups_are_weights = True
    protects = False

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Return one unit a weight."""
        return [Unit(name, (name,), shape.numel(), (shape,)) for name, shape in shapes.items()]

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Return the scores themselves, flat."""
        return GroupScores(scores(unit.name).reshape(-1), 1)

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Return the verdicts in the weight's shape."""
        return {unit.name: keep.reshape(unit.shapes[0])}
