"""Arguments and options that commands share."""

import json
from typing import Annotated, Any, Optional

import typer

from sparse_pretrain.errors import UserError

RecipeArgument = Annotated[str, typer.Argument(help="a YAML file, or the name of a shipped recipe")]
OverridesArgument = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer evaluates the annotation
    typer.Argument(help="key=value settings on top of the recipe, for example `seed=7 engine.stage=3`"),
]
AllowChangeOption = Annotated[
    bool,
    typer.Option("--allow-change", help="continue a run although its recipe now trains something else"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for scripts")]


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2))


def whole_numbers(text: str, option: str, at_least: int = 0) -> list[int]:
    """Read whole numbers separated by commas, ascending and each once.

    Raises:
        UserError: they are none.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= at_least for word in words):
        raise UserError(f"{option} = {text!r}: give whole numbers from {at_least}, separated by commas")
    return sorted({int(word) for word in words})
