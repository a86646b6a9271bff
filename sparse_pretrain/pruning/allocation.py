"""How the zeros are shared out: which units compete with each other, and how many weights each contest prunes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparse_pretrain.config.pruning import (
    AllocationSection,
    GlobalAllocation,
    TableAllocation,
)
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.structure import Unit

# The scope of the weights that no named group of a global allocation takes.
REST = "(rest)"


@dataclass(frozen=True)
class Scope:
    """Units whose groups compete for the same zeros.

    Attributes:
        name: the unit's, the named group's, or `(rest)`.
        units: their indices.
        weights: how many weights they have together.
        final: the share that is pruned at the end of the schedule.
    """

    name: str
    units: tuple[int, ...]
    weights: int
    final: float


def scopes(
    allocation: AllocationSection, target: float, units: Sequence[Unit], sizes: Mapping[str, int]
) -> list[Scope]:
    """Return the scopes of an allocation; every unit is in exactly one.

    Args:
        allocation: the recipe's section.
        target: the recipe's `target_sparsity`.
        units: of the structure, in the model's order.
        sizes: weights by member name.

    Raises:
        UserError: an expression does not compile or finds nothing.
    """
    weights = [sum(sizes[member] for member in unit.members) for unit in units]
    if isinstance(allocation, GlobalAllocation):
        named = assign(units, allocation.groups, "pruning.allocation.groups")
        names = sorted(set(named), key=named.index)
        members = {name: tuple(i for i, other in enumerate(named) if other == name) for name in names}
        return [
            Scope(name or REST, chosen, sum(weights[unit] for unit in chosen), target)
            for name, chosen in members.items()
        ]
    finals = [target] * len(units)
    if isinstance(allocation, TableAllocation):
        patterns = {pattern: [pattern] for pattern in allocation.targets}
        found = assign(units, patterns, "pruning.allocation.targets")
        finals = [target if pattern is None else allocation.targets[pattern] for pattern in found]
    return [Scope(unit.name, (index,), weights[index], finals[index]) for index, unit in enumerate(units)]


def assign(units: Sequence[Unit], groups: Mapping[str, Sequence[str]], key: str) -> list[str | None]:
    """Return for every unit the first group that one of its members' names belongs to, or None.

    Raises:
        UserError: an expression does not compile, or a group gets no unit.
    """
    compiled = {
        name: [_compile(pattern, f"{key}.{name}") for pattern in found] for name, found in groups.items()
    }
    result = [
        next(
            (
                name
                for name, patterns in compiled.items()
                if any(pattern.search(member) for pattern in patterns for member in unit.members)
            ),
            None,
        )
        for unit in units
    ]
    for name in groups:
        if name not in result:
            example = units[0].members[0] if units else "(none)"
            taken = any(p.search(member) for p in compiled[name] for unit in units for member in unit.members)
            why = "earlier patterns take all that it finds" if taken else "no prunable weight is found by it"
            raise UserError(f"{key}.{name}: {why}; names look like {example}")
    return result


def budget(scope: Scope, share: float) -> int:
    """Return how many weights of a scope `share` of it is: round(share x weights), half to even."""
    return round(share * scope.weights)


def most_that_may_go(weights: int, minimum_kept: float) -> int:
    """Return how many of a unit's weights may be pruned when at least `minimum_kept` of them must stay."""
    return int((1.0 - minimum_kept) * weights + 1e-9)


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
