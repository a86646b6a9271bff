"""Scorers of other packages, found by entry point.

A package offers one in its `pyproject.toml`:

    [project.entry-points."sparse_pretrain.scorers"]
    fisher = "my_package.fisher:BlockFisher"

and a recipe asks for it: `pruning: {scorer: {kind: custom, name: fisher, options: {block: 64}}}`.
The named class or function is called with the options and returns a `Scorer`.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.scorer import Scorer

GROUP = "sparse_pretrain.scorers"
KEY = "pruning.scorer"


def custom_scorer(name: str, options: Mapping[str, Any]) -> Scorer:
    """Build the scorer behind an entry point.

    Args:
        name: of the entry point, in the group `sparse_pretrain.scorers`.
        options: keyword arguments of its factory.

    Raises:
        UserError: there is none of that name, it cannot be imported, does not take these options, or
            returns something that is no scorer.
    """
    point = _find(name)
    scorer = _load(point, options)(**options)
    missing = [member for member in members() if not hasattr(scorer, member)]
    if missing:
        raise UserError(
            f"{KEY}.name = {name}: {point.value} returns a {type(scorer).__name__} without "
            f"{', '.join(missing)}; a scorer has {', '.join(members())}"
        )
    return cast(Scorer, scorer)


def members() -> list[str]:
    """Return the names of all that a scorer must have."""
    return [name for name in vars(Scorer) if not name.startswith("_")]


def _find(name: str) -> EntryPoint:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        others = f"known: {', '.join(sorted(known))}" if known else "no installed package offers any"
        raise UserError(f"{KEY}.name = {name}: no such entry point of the group {GROUP}; {others}")
    return known[name]


def _load(point: EntryPoint, options: Mapping[str, Any]) -> Callable[..., object]:
    """Import a factory and see that it takes the options."""
    try:
        factory = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"{KEY}.name = {point.name}: cannot import {point.value} ({error})") from None
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UserError(f"{KEY}.options: {point.value} does not take them ({error})") from None
    return cast(Callable[..., object], factory)
