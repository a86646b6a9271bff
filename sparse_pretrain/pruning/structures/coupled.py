"""Rows and columns of several weights that work together: attention heads and feed-forward channels.

A head is its rows of query, key and value and its columns of the attention's output matrix; a channel is
a row of the first feed-forward matrix and a column of the second (Michel et al. 2019; Voita et al. 2019).
Once the columns are zero, nothing of the head or channel reaches the residual stream, so that its biases
need no mask and it can be cut out of the model without changing a single output.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import Pool
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.structure import GroupScores, Unit
from sparse_pretrain.pruning.structures.pooling import combine, combine_runs, finish, measure, merge


@dataclass(frozen=True)
class Member:
    """A weight [outputs, inputs] in a set; the axis is cut into as many equal runs as the set has groups.

    Attributes:
        weight: its name.
        axis: 0, rows belong to the groups, or 1, columns do.
    """

    weight: str
    axis: int


@dataclass(frozen=True)
class CoupledSet:
    """The heads, or the channels, of one layer.

    Attributes:
        name: what tables call it.
        groups: how many heads or channels.
        members: the weights they run through, in the model's order.
    """

    name: str
    groups: int
    members: tuple[Member, ...]


class Coupled:
    """Groups that reach through several weights; weights in no set are no unit's member and stay dense.

    Args:
        sets: in the model's order; no weight in two of them.
        pooling: a group's score from the scores of its weights, across all members.

    Raises:
        ValueError: a weight is in two sets.
    """

    groups_are_weights = False
    protects = False

    def __init__(self, sets: Sequence[CoupledSet], pooling: Pool = "mean") -> None:
        names = [member.weight for coupled in sets for member in coupled.members]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{min(twice)} is in more than one coupled set")
        self._sets = {coupled.name: coupled for coupled in sets}
        self.pooling = pooling

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Return one unit a set.

        Raises:
            UserError: a set's weight is not among `shapes`, or cannot be cut into equal groups.
        """
        return [_unit(coupled, shapes) for coupled in self._sets.values()]

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Pool every group's scores, one member after another: one weight's scores are alive at a time."""
        parts = [
            self._contribution(scores(member.weight), member.axis, unit.groups)
            for member in self._sets[unit.name].members
        ]
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part, self.pooling)
        size = sum(shape.numel() for shape in unit.shapes) // unit.groups
        return GroupScores(finish(total, size, self.pooling), size)

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Give every weight of a group the group's verdict, in all members."""
        masks = {}
        for member, shape in zip(self._sets[unit.name].members, unit.shapes, strict=True):
            lines = keep.repeat_interleave(shape[member.axis] // unit.groups)
            masks[member.weight] = lines.unsqueeze(1 - member.axis).expand(shape).contiguous()
        return masks

    def _contribution(self, scores: Tensor, axis: int, groups: int) -> Tensor:
        lines = combine(measure(scores, self.pooling), 1 - axis, self.pooling)
        return combine_runs(lines, 0, lines.numel() // groups, self.pooling)


def _unit(coupled: CoupledSet, shapes: Mapping[str, torch.Size]) -> Unit:
    for member in coupled.members:
        if member.weight not in shapes:
            raise UserError(
                f"pruning.structure.kind = coupled: {coupled.name} needs {member.weight}, which is not prunable"
            )
        shape = shapes[member.weight]
        if len(shape) != 2 or shape[member.axis] % coupled.groups:
            raise UserError(
                f"pruning.structure.kind = coupled: {member.weight} of shape {list(shape)} cannot be cut into "
                f"the {coupled.groups} equal groups of {coupled.name}"
            )
    names = tuple(member.weight for member in coupled.members)
    return Unit(coupled.name, names, coupled.groups, tuple(shapes[name] for name in names))
