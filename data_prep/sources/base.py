"""What every source offers: raw documents in a stream, and how to make plain text of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from data_prep.documents import Drop
from sparse_pretrain.errors import UserError

Extract: TypeAlias = Callable[[str], str | Drop]


class Source(ABC):
    """One input of a recipe.

    Reading is cheap and happens in one process; `extract` is the costly part, runs in the workers, and
    so must be picklable and pure.

    Attributes:
        kind: the recipe's `kind`.
        name: path or name, as the manifest shows it.
        total: size in the unit of `position`; 0 when unknown.
        position: how far `read` has come, for the progress bar.
        extract: raw document to plain text, or the reason to drop it.
    """

    kind: str
    name: str
    total: int = 0
    position: int = 0
    extract: Extract

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a SHA-256 of what `read` will yield: of the bytes for files, of the commit for the hub."""

    @abstractmethod
    def read(self) -> Iterator[str | Drop]:
        """Yield raw documents, and a `Drop` for each that needs no look at its text to be dropped.

        Raises:
            UserError: the input is damaged; the message names it.
        """


def require_file(path: Path) -> None:
    """Check that a source's file exists.

    Raises:
        UserError: it does not, or is something else.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():
        raise UserError(f"{path}: not a file")
