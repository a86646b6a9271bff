"""What every source offers: its parts, the raw documents of each, and how to make plain text of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from data_prep.documents import Drop, Raw
from sparse_pretrain.errors import UserError

Extract: TypeAlias = Callable[[str], str | Drop]

# Bytes of one raw document. Whatever is longer is no document, and would cost a worker its memory.
LARGEST_RECORD = 40 * 2**20


class Unit(NamedTuple):
    """A part of a source that one worker reads; picklable.

    Attributes:
        size: how much of the source it is, in the source's own measure, for progress.
        where: what the source's `read` needs to find it.
    """

    size: int
    where: Any


class Source(ABC):
    """One input of a recipe; picklable.

    How a source is cut into units depends on the source alone, never on the number of workers, and the
    units one after the other give every document once.

    Attributes:
        kind: the recipe's `kind`.
        name: path or name, as the manifest shows it.
        reading: the recipe's settings that decide what is read, without the place.
        extract: raw document to plain text, or the reason to drop it; pure.
    """

    kind: str
    name: str
    reading: dict[str, Any]
    extract: Extract

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a SHA-256 of what will be read: of the bytes for files, of the commit for the hub."""

    @abstractmethod
    def units(self) -> list[Unit]:
        """Return the parts, in the source's order.

        Raises:
            UserError: the input cannot be read at all.
        """

    @abstractmethod
    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield a unit's raw documents, with a `Raw` for each that is dropped, and for damage.

        Raises:
            UserError: what is read is not what the recipe says it is.
        """


def files_of(path: Path) -> list[Path]:
    """Return the file, or the sorted files that a path with wildcards means.

    Raises:
        UserError: there is none.
    """
    if has_magic(str(path)) and not path.exists():
        found = sorted(Path(name) for name in glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns
        files = [file for file in found if file.is_file()]
        if not files:
            raise UserError(f"{path}: no file matches")
        return files
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    return [path]


def beginning(text: str) -> str:
    """Return as much of a dropped document as its sample shows."""
    return text[:200]
