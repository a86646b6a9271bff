"""Which weights are kept or pruned together: cuts weights into groups, and groups' verdicts back into masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unit:
    """One weight, or several that are pruned together, cut into groups.

    Attributes:
        name: what it is called in tables: the weight's name, or that of the set.
        members: names of the weights in it, in the model's order.
        groups: how many groups it has.
        shapes: of the members, in their order.
    """

    name: str
    members: tuple[str, ...]
    groups: int
    shapes: tuple[torch.Size, ...] = ()


@dataclass(frozen=True)
class GroupScores:
    """What selection needs to know of one unit.

    Attributes:
        scores: float32 [groups]; the lowest go first.
        sizes: weights in each group, int64 [groups]; an int when all groups have that many.
        protected: bool [groups], True where the structure forbids pruning; None: nowhere.
    """

    scores: Tensor
    sizes: Tensor | int
    protected: Tensor | None = None


class Structure(Protocol):
    """Pure: knows shapes, never communicates. It is shown the whole scores of one weight at a time."""

    @property
    def groups_are_weights(self) -> bool:
        """Whether every group is a single weight: nothing is pooled, scores stay in their shards."""
        ...

    @property
    def protects(self) -> bool:
        """Whether `pool` protects groups, for which it must see whole weights."""
        ...

    def units(self, shapes: Mapping[str, torch.Size]) -> Sequence[Unit]:
        """Cut weights of these shapes into units, in the model's order.

        Raises:
            UserError: the structure does not exist in these weights.
        """
        ...

    def pool(self, unit: Unit, scores: Callable[[str], Tensor]) -> GroupScores:
        """Turn single weights' scores into groups' scores.

        Args:
            unit: one of `units`.
            scores: gives a member's scores, float32 of the weight's shape; called once a member, in order.
        """
        ...

    def expand(self, unit: Unit, keep: Tensor) -> dict[str, Tensor]:
        """Turn groups' verdicts, bool [groups], into masks (bool of the weights' shapes) by member."""
        ...
