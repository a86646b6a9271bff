"""Which settings differ between two recipes, and which of those change what is trained."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

# Settings that may differ between two starts of one run: where it writes, how it is spread over machines, what
# it logs. Data, teacher and architecture are compared by what is in them, so their paths may differ.
HARMLESS = (
    "output",
    "precision",
    "data.path",
    "data.mix",
    "model.source",
    "model.pretrained",
    "model.architecture",
    "model.attention",
    "batch.micro_size",
    "engine",
    "checkpoint",
    "evaluation",
    "guard",
    "logging",
    "pruning.masks",
    "distillation.placement",
    "distillation.precomputed",
    "distillation.teacher",
)

# Mappings whose keys the recipe's author chooses: one that was not there before is a change. Elsewhere it is a
# setting that an older program did not know.
OPEN = (
    "data.mix",
    "model.config",
    "pruning.table",
    "pruning.allocation.groups",
    "pruning.allocation.targets",
    "pruning.scorer.options",
    "distillation.hidden.layers",
    "distillation.attention.layers",
)


class Change(NamedTuple):
    """One setting that differs.

    Attributes:
        key: with dots.
        before: its value in the recipe that the checkpoint was saved with.
        after: its value now.
        breaks: whether the run leaves the trajectory that it would have had.
    """

    key: str
    before: object
    after: object
    breaks: bool

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}"


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Compare two recipes as they are stored (JSON-able mappings), sorted by key.

    A setting that an older program did not know, absent in `before`, is no change.
    """
    old, new = flatten(before), flatten(after)
    changes = []
    for key in sorted(old.keys() | new.keys()):
        if key not in old and not is_below_any(key, old) and not is_below_any(key, OPEN):
            continue
        if old.get(key) != new.get(key) and not is_replaced_section(key, old, new):
            changes.append(Change(key, old.get(key), new.get(key), not is_harmless(key)))
    return changes


def is_harmless(key: str) -> bool:
    """Say whether a setting may differ without changing what is trained."""
    return key in HARMLESS or is_below_any(key, HARMLESS)


def is_below_any(key: str, sections: Container[str]) -> bool:
    """Say whether a key lies in one of some sections (in a flat recipe: one of one value, such as `pruning: null`)."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in sections for length in range(1, len(parts)))


def is_replaced_section(key: str, old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    """Say whether a key is an empty mapping that was filled, or the other way round: its keys tell the story.

    (A null that became a section is null on both sides: no difference to begin with.)
    """
    flat = new if key in old else old
    return (old.get(key) or new.get(key)) in (None, {}) and any(other.startswith(f"{key}.") for other in flat)


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Return nested mappings as `{"a.b": value}`."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
