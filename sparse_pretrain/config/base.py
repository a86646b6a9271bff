"""What every section of a recipe shares."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def expand_home(source: str) -> str:
    """Return a name or path with a leading `~` replaced by the home folder.

    Raises:
        ValueError: `~name` of nobody.
    """
    return str(expand_path(Path(source))) if source.startswith("~") else source


def expand_path(path: Path) -> Path:
    """Return a path with a leading `~` replaced by the home folder.

    Raises:
        ValueError: `~name` of nobody.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            "~ names a home folder, and there is none of this name; write ./~ for a file"
        ) from None


# A file or folder of the user's.
UserPath = Annotated[Path, AfterValidator(expand_path)]

# A Hugging Face name or a folder.
ModelSource = Annotated[str, AfterValidator(expand_home)]


class Section(BaseModel):
    """One section of a recipe: immutable, strict about unknown keys, validated defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())
