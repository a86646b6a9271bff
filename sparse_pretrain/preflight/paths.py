"""Which paths a recipe reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

# Written by the run, or on each machine for itself.
NOT_READ = ("output", "checkpoint.local")


def recipe_paths(recipe: BaseModel) -> list[Path]:
    """Return the paths that a recipe reads: every path in it, and every text that names something on this disk."""
    found = []
    for key, value in settings(recipe.model_dump()):
        if key in NOT_READ:
            continue
        if isinstance(value, Path):
            found.append(value.absolute())
        elif isinstance(value, str) and value and Path(value).expanduser().exists():
            found.append(Path(value).expanduser().absolute())
    return list(dict.fromkeys(found))


def settings(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every single setting of nested sections with its dotted name."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from settings(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from settings(inner, f"{key}[{number}]")
    else:
        yield key, value
