"""What every section of a recipe shares."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of a recipe: immutable, strict about unknown keys, validated defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
