"""Documents in a JSON file."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from data_prep.documents import Drop
from data_prep.recipe import ParagraphsJson
from data_prep.sources.base import Source, require_file
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, sha256_file

# A JSON list or object is parsed whole; a JSONL file is streamed.
LARGEST_PARSED_WHOLE = 512 * 2**20


class ParagraphsJsonSource(Source):
    """The records of a JSON list, of an object's values, or of the lines of a .jsonl file."""

    kind = "paragraphs_json"

    def __init__(self, section: ParagraphsJson) -> None:
        """Check the file.

        Raises:
            UserError: it is missing, or too large to be parsed whole.
        """
        self.path = section.path
        self.name = str(section.path)
        self.extract = plain
        self.text_key = section.text_key
        require_file(self.path)
        self.total = self.path.stat().st_size
        self.by_line = self.path.suffix.lower() in (".jsonl", ".ndjson")
        if not self.by_line and self.total > LARGEST_PARSED_WHOLE:
            raise UserError(
                f"{self.path}: {self.total / 2**20:.0f} MiB of JSON in one piece; "
                "write it as .jsonl, one record a line, so that it can be streamed"
            )

    def fingerprint(self) -> str:
        """Return the hash of the file."""
        return sha256_file(self.path)

    def read(self) -> Iterator[str | Drop]:
        """Yield each record's text."""
        for record in self.lines() if self.by_line else self.values():
            text = record.get(self.text_key) if isinstance(record, dict) else record
            yield text if isinstance(text, str) else Drop.NO_TEXT

    def values(self) -> Iterable[Any]:
        """Return the records of a list or object."""
        content = read_json(self.path)
        self.position = self.total
        if isinstance(content, dict):
            return content.values()
        if isinstance(content, list):
            return content
        raise UserError(
            f"{self.path}: holds a {type(content).__name__}; need a list or an object of documents"
        )

    def lines(self) -> Iterator[Any]:
        """Yield the record of each line that is not empty."""
        with self.path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                self.position += len(line)
                if not line.strip():
                    continue
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    raise UserError(f"{self.path}: line {number}: not valid JSON ({error})") from None


def plain(content: str) -> str | Drop:
    """Return text that is plain already."""
    return content if content.strip() else Drop.NO_TEXT
