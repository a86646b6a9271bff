"""What every section of a recipe shares."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def expand_home(source: str) -> str:
    """Return a name or path with a leading `~` replaced by the home folder."""
    return str(Path(source).expanduser()) if source.startswith("~") else source


# A Hugging Face name or a folder.
ModelSource = Annotated[str, AfterValidator(expand_home)]


class Section(BaseModel):
    """One section of a recipe: immutable, strict about unknown keys, validated defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
