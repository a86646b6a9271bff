"""What the structures of matrices share: one unit a weight, and a clear line when a weight is no matrix."""

from collections.abc import Callable, Mapping

import torch

from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.structure import Unit


def unit_of_each(
    shapes: Mapping[str, torch.Size], structure: str, groups: Callable[[int, int], int]
) -> list[Unit]:
    """Make every matrix [outputs, inputs] a unit of its own.

    Args:
        shapes: by name, in the model's order.
        structure: how the recipe calls the structure, for the message.
        groups: number of groups of a matrix, from its rows and columns.

    Raises:
        UserError: a weight is no matrix.
    """
    units = []
    for name, shape in shapes.items():
        if len(shape) != 2:
            raise UserError(
                f"pruning.structure.kind = {structure}: {name} has shape {list(shape)}, not [outputs, inputs]; "
                "name it in pruning.exclude"
            )
        units.append(Unit(name, (name,), groups(shape[0], shape[1]), (shape,)))
    return units
