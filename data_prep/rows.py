"""What pair building and packing have in common."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from data_prep.documents import Document, Tokens


class Row(NamedTuple):
    """One training sample of one sequence.

    Attributes:
        tokens: uint16 or uint32 [at most sequence_length], special tokens included, no padding.
        second_start: index of the second segment's first token; 0 without pairs.
        random_next: 1 when the second segment does not follow the first; 0 without pairs.
    """

    tokens: Tokens
    second_start: int = 0
    random_next: int = 0


class PackedRow(NamedTuple):
    """One training sample of several sequences, each as it would stand in a row of its own."""

    sequences: tuple[Row, ...]


class RowBuilder(Protocol):
    """Turns a stream of documents into rows; holds a bounded part of the stream."""

    def add(self, document: Document) -> Iterator[Row | PackedRow]:
        """Take one document in and yield the rows that are complete by now."""

    def finish(self) -> Iterator[Row | PackedRow]:
        """Yield what is left at the stream's end."""
