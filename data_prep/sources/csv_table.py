"""Documents in the rows of CSV files."""

import csv
from collections.abc import Iterator

from data_prep.documents import Drop, Fault, Raw
from data_prep.recipe import CsvTable
from data_prep.sources.base import LARGEST_RECORD, Source, Unit, beginning, files_of
from data_prep.sources.hashing import hash_files
from data_prep.sources.paragraphs_json import plain
from data_prep.sources.parts import CHUNK, Part, chunks, packing_of
from data_prep.sources.records import Record, lines
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_json

MOST_PARTS = 16
ROWS_IN_A_STRIPE = 256


class CsvSource(Source):
    """One column of CSV files with a header.

    A quoted field may hold line breaks, so that a file can only be read from its start: each part of a file
    parses the whole, which is fast, and takes every n-th stripe of rows.
    """

    kind = "csv"

    def __init__(self, section: CsvTable) -> None:
        """Find the files and check their headers.

        Raises:
            UserError: there is no file, or one has no such column.
        """
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = str(section.path)
        self.paths = files_of(section.path)
        self.column = section.text_column
        self.delimiter = section.delimiter
        self.extract = plain
        for path in self.paths:
            part = Part(path, packing_of(path), 0, path.stat().st_size or 1, 0)
            header = next(self.rows(part, []), [])
            if self.column not in header:
                raise UserError(f"{path}: no column {self.column!r}; its columns: {', '.join(header)}")

    def fingerprint(self) -> str:
        """Return the hash of the files and of what is read of them."""
        return sha256_json([hash_files(self.paths), self.column, self.delimiter])

    def units(self) -> list[Unit]:
        """Return stripes of the files' rows."""
        found = []
        for path in self.paths:
            size = path.stat().st_size
            parts = max(1, min(MOST_PARTS, size // (4 * CHUNK)))
            whole = Part(path, packing_of(path), 0, size, 0)
            found += [Unit(size // parts, (whole, number, parts)) for number in range(parts)]
        return found

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield the column's values."""
        part, number, parts = unit.where
        problems: list[Drop | Fault] = []
        column = -1
        for position, row in enumerate(self.rows(part, problems)):
            if not position:
                column = row.index(self.column)
                continue
            own = (position - 1) // ROWS_IN_A_STRIPE % parts == number
            if own and len(row) > column:
                fault = Fault.BAD_ENCODING if "\ufffd" in row[column] else None
                yield Raw(row[column], None, fault)
            elif own and row:
                yield Raw(beginning(self.delimiter.join(row)), Drop.DAMAGED)
        if not number:  # every part meets the same problems
            for problem in problems:
                yield Raw(fault=problem) if isinstance(problem, Fault) else Raw(drop=problem)

    def rows(self, part: Part, problems: list[Drop | Fault]) -> Iterator[list[str]]:
        """Yield a file's rows, the header first; what cannot be read is appended to `problems`."""
        whole = part if part.packing.name in ("PLAIN", "BZIP2") else part._replace(end=1)
        records = lines(chunks(whole), True, LARGEST_RECORD)
        reader = csv.reader(text_lines(records, problems), delimiter=self.delimiter)
        csv.field_size_limit(LARGEST_RECORD)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error:
                problems.append(Drop.DAMAGED)


def text_lines(records: Iterator[Record], problems: list[Drop | Fault]) -> Iterator[str]:
    """Yield the lines as text."""
    for position, record in enumerate(records):
        if isinstance(record, bytes):
            yield record.decode("utf-8-sig" if not position else "utf-8", "replace") + "\n"
        else:
            problems.append(record)
