"""A folder of text files, one document a file."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.clean import unwrap
from data_prep.documents import Drop
from data_prep.gutenberg import strip_gutenberg
from data_prep.recipe import Books
from data_prep.sources.base import Source
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file, sha256_json


class BooksSource(Source):
    """Books in the order of their relative paths."""

    kind = "books"

    def __init__(self, section: Books) -> None:
        """List the files.

        Raises:
            UserError: no such folder, or no file in it matches.
        """
        self.folder = section.path
        self.name = f"{section.path}/{section.pattern}"
        self.extract = book_text
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of books")
        try:
            found = [path for path in self.folder.glob(section.pattern) if path.is_file()]
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{self.folder}: pattern {section.pattern!r}: {error}") from None
        self.paths = sorted(found, key=self.relative)
        if not self.paths:
            raise UserError(f"{self.folder}: no file matches {section.pattern!r}")
        self.total = sum(path.stat().st_size for path in self.paths)

    def relative(self, path: Path) -> str:
        """Return a book's path inside the folder."""
        return path.relative_to(self.folder).as_posix()

    def fingerprint(self) -> str:
        """Return a hash over every file's relative path and bytes."""
        return sha256_json([[self.relative(path), sha256_file(path)] for path in self.paths])

    def read(self) -> Iterator[str | Drop]:
        """Yield each file's text."""
        for path in self.paths:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from None
            self.position += len(content)
            yield decode(content)


def decode(content: bytes) -> str:
    """Decode UTF-8; old files that are not UTF-8 are Windows-1252, with Latin-1 for its five holes."""
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    return content.decode("latin-1")


def book_text(content: str) -> str | Drop:
    """Return the book's paragraphs, one a line, without Project Gutenberg's header and licence."""
    return unwrap(strip_gutenberg(content)).strip() or Drop.NO_TEXT
