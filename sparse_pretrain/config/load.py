"""YAML recipe + `key=value` overrides -> validated model, every mistake reported at once."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sparse_pretrain.config.base import Section
from sparse_pretrain.errors import UserError
from sparse_pretrain.shipped import shipped_recipe

Recipe = TypeVar("Recipe", bound=Section)


def load_recipe(path: str | Path, overrides: Sequence[str], schema: type[Recipe]) -> Recipe:
    """Read a recipe, apply overrides, validate.

    Args:
        path: a YAML file, or the name of a shipped recipe (`bert-base-85` or `bert-base-85.yaml`).
        overrides: `section.key=value` strings, values parsed as YAML, applied in order.
        schema: the recipe's model.

    Raises:
        UserError: naming the file and, a line each, every key that is wrong and what would be right.
    """
    source = find_recipe(path)
    values = read_values(source, overrides)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise UserError(
            "\n".join(explain(str(source), schema, detail) for detail in error.errors())
        ) from None


def find_recipe(path: str | Path) -> Path:
    """Return the file a recipe argument means: a path first, else a shipped recipe's name."""
    candidate = Path(path)
    if candidate.is_file():
        return candidate
    shipped = shipped_recipe(str(path))
    if shipped is not None:
        return shipped
    raise UserError(f"{path}: no such recipe file, and no shipped recipe has this name")


def read_values(source: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the recipe's plain values with overrides merged in and interpolations resolved."""
    try:
        base = OmegaConf.create(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r}: write it as key=value, for example steps=1000")
    try:
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        raise UserError(f"{source}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{source}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return {str(key): value for key, value in values.items()}


def explain(source: str, schema: type[BaseModel], detail: ErrorDetails) -> str:
    """Turn one pydantic error into `file: key = value: what would be right`."""
    location = [str(part) for part in detail["loc"]]
    key = ".".join(without_kinds(schema, location)) or "recipe"
    if detail["type"] == "extra_forbidden":
        known = known_keys(schema, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"{source}: {key}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{source}: {key}: missing; this key has no default"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if isinstance(detail["input"], Mapping) else f" = {detail['input']!r}"
    return f"{source}: {key}{shown}: {message}{percent_hint(location, detail['input'])}"


def percent_hint(location: Sequence[str], value: object) -> str:
    """Suggest the fraction when somebody wrote a percentage where a fraction belongs."""
    words = ("sparsity", "probability", "targets", "table", "minimum_kept")
    fraction_key = any(word in part for part in location[-2:] for word in words)
    if fraction_key and isinstance(value, int | float) and 2 <= value < 100:
        return f". Did you mean {value / 100:g}?"
    return ""


def without_kinds(schema: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Drop from an error's location what the recipe does not have: the `kind` by which a union is told apart.

    A key of the user's own in a mapping stays, even where it is called like a kind.
    """
    shown: list[str] = []
    own_key = False
    for index, part in enumerate(location):
        sections = sections_at(schema, location[:index])
        if own_key or not any(kind_of(section) == part for section in sections):
            shown.append(part)
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        own_key = not own_key and any(get_origin(field.annotation) is dict for field in fields)
    return shown


def known_keys(schema: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the field names of the section at `location`.

    Follows optional sections, mappings and lists of sections, and the `kind` by which a union is told apart.
    """
    return sorted({name for section in sections_at(schema, location) for name in section.model_fields})


def sections_at(schema: type[BaseModel], location: Sequence[str]) -> list[type[BaseModel]]:
    """Return the models that may stand at `location`, several where a union is not told apart yet."""
    sections = [schema]
    for part in location:
        of_kind = [section for section in sections if kind_of(section) == part]
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        inner = [section for field in fields for section in sections_in(field.annotation)]
        # A name that is neither is the user's own key in a mapping: its sections are those of the mapping.
        sections = of_kind or inner or sections
    return sections


def kind_of(section: type[BaseModel]) -> str | None:
    """Return the literal value of a section's `kind`, or None when it has none."""
    field = section.model_fields.get("kind")
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the model classes inside an annotation such as `X | None` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def to_yaml(recipe: BaseModel) -> str:
    """Return the resolved recipe as YAML that `load_recipe` reads back to an equal model."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
