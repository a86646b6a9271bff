"""Documents in JSON files: whole ones, or one record a line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_prep.documents import Drop, Fault, Raw
from data_prep.recipe import JsonLines, ParagraphsJson
from data_prep.sources.base import LARGEST_RECORD, Source, Unit, beginning, files_of
from data_prep.sources.hashing import hash_files
from data_prep.sources.parts import CHUNK, Part, chunks, cut
from data_prep.sources.records import lines
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json

# A JSON list or object is parsed whole, once for every part of it; a JSONL file is streamed.
LARGEST_PARSED_WHOLE = 512 * 2**20
MOST_PARTS = 16
LINE_SUFFIXES = (".jsonl", ".ndjson")


class JsonLinesSource(Source):
    """The records of files with one JSON record a line."""

    kind = "jsonl"

    def __init__(self, section: JsonLines | ParagraphsJson) -> None:
        """Find the files.

        Raises:
            UserError: there is none.
        """
        self.kind = section.kind
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = str(section.path)
        self.paths = files_of(section.path)
        self.text_key = section.text_key
        self.extract = plain

    def fingerprint(self) -> str:
        """Return the hash of the files."""
        return hash_files(self.paths)

    def units(self) -> list[Unit]:
        """Return parts of the files."""
        total = sum(path.stat().st_size for path in self.paths)
        return [Unit(part.size, part) for path in self.paths for part in cut(path, total)]

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield each record's text; a line that is not JSON is a damaged document."""
        part: Part = unit.where
        for line in lines(chunks(part), part.is_first, LARGEST_RECORD):
            match line:
                case Fault():
                    yield Raw(fault=line)
                case Drop():
                    yield Raw(drop=line)
                case bytes() if line.strip():
                    yield self.record(line)

    def record(self, line: bytes) -> Raw:
        """Return one line's document."""
        fault = None
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text, fault = line.decode("utf-8", "replace"), Fault.BAD_ENCODING
        try:
            return text_of(json.loads(text), self.text_key)._replace(fault=fault)
        except (json.JSONDecodeError, RecursionError):
            return Raw(beginning(text), Drop.DAMAGED, fault)


class ParagraphsJsonSource(Source):
    """The records of a JSON list or of an object's values."""

    kind = "paragraphs_json"

    def __init__(self, section: ParagraphsJson) -> None:
        """Check the file.

        Raises:
            UserError: it is missing, or too large to be parsed whole.
        """
        (self.path,) = files_of(section.path)
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = str(section.path)
        self.extract = plain
        self.text_key = section.text_key
        self.size = self.path.stat().st_size
        if self.size > LARGEST_PARSED_WHOLE:
            raise UserError(
                f"{self.path}: {self.size / 2**20:.0f} MiB of JSON in one piece; "
                "write it as .jsonl, one record a line, so that it can be streamed"
            )

    def fingerprint(self) -> str:
        """Return the hash of the file."""
        return hash_files([self.path])

    def units(self) -> list[Unit]:
        """Return runs of records."""
        parts = max(1, min(MOST_PARTS, self.size // CHUNK))
        return [Unit(self.size // parts, (number, parts)) for number in range(parts)]

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield each record's text."""
        number, parts = unit.where
        records = list(self.values())
        for record in records[len(records) * number // parts : len(records) * (number + 1) // parts]:
            yield text_of(record, self.text_key)

    def values(self) -> Iterable[Any]:
        """Return the records of a list or object."""
        content = read_json(self.path)
        if isinstance(content, dict):
            return content.values()
        if isinstance(content, list):
            return content
        raise UserError(
            f"{self.path}: holds a {type(content).__name__}; need a list or an object of documents"
        )


def open_json(section: ParagraphsJson) -> Source:
    """Return the reader of a JSON file: by line when its name says so."""
    suffixes = [suffix.lower() for suffix in Path(section.path).suffixes]
    return JsonLinesSource(section) if set(LINE_SUFFIXES) & set(suffixes) else ParagraphsJsonSource(section)


def text_of(record: Any, key: str) -> Raw:
    """Return the document in a record: its text, or the text under a key."""
    text = record.get(key) if isinstance(record, dict) else record
    return Raw(text) if isinstance(text, str) else Raw(beginning(json.dumps(record)), Drop.NO_TEXT)


def plain(content: str) -> str | Drop:
    """Return text that is plain already."""
    return content if content.strip() else Drop.NO_TEXT
