"""Books: a folder of text files."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from data_prep.clean import unwrap
from data_prep.documents import Drop, Fault, Raw
from data_prep.gutenberg import strip_gutenberg
from data_prep.recipe import Books
from data_prep.sources.base import LARGEST_RECORD, Source, Unit
from data_prep.sources.encoding import decode
from data_prep.sources.hashing import hash_file
from data_prep.sources.parts import read_beginning, unit_size
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_json


class BooksSource(Source):
    """Books in the order of their relative paths."""

    kind = "books"

    def __init__(self, section: Books) -> None:
        """List the files.

        Raises:
            UserError: no such folder, or no file in it matches.
        """
        self.folder = section.path
        self.encoding = section.encoding
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
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

    def relative(self, path: Path) -> str:
        """Return a book's path inside the folder."""
        return path.relative_to(self.folder).as_posix()

    def fingerprint(self) -> str:
        """Return a hash over every file's relative path and bytes.

        Raises:
            UserError: a file cannot be read.
        """
        try:
            return sha256_json([[self.relative(path), hash_file(path)] for path in self.paths])
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def units(self) -> list[Unit]:
        """Return groups of files of about the same size."""
        sizes = [path.stat().st_size for path in self.paths]
        largest = unit_size(sum(sizes), 2**20, 64 * 2**20)
        groups: dict[int, list[Path]] = {}
        for path, size, end in zip(self.paths, sizes, accumulate(sizes), strict=True):
            groups.setdefault((end - size) // largest, []).append(path)
        return [Unit(sum(path.stat().st_size for path in group), group) for group in groups.values()]

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield each file's text."""
        for path in unit.where:
            try:
                content = read_beginning(path, LARGEST_RECORD + 1)
            except (OSError, UserError):
                yield Raw(path.name, Drop.DAMAGED, Fault.UNREADABLE_FILE)
                continue
            if len(content) > LARGEST_RECORD:
                yield Raw(path.name, Drop.TOO_LONG)
                continue
            text, bad = decode(content, self.encoding)
            yield Raw(text, None, Fault.BAD_ENCODING if bad else None)


def book_text(content: str) -> str | Drop:
    """Return the book's paragraphs, one a line, without Project Gutenberg's header and licence."""
    return unwrap(strip_gutenberg(content)).strip() or Drop.NO_TEXT
