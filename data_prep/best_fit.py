"""Packed rows that break as few documents as possible.

A window of documents is cut into items: of a document longer than a row, full rows and a rest. Items that fill a row
well together share it (`bins`). Where the lengths do not fit each other well, the emptiest rows are made again, their
items running on from row to row, until the window is full enough. No token is dropped or doubled.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from data_prep.bins import best_fit, divide
from data_prep.documents import Document, Tokens
from data_prep.rows import PackedRow, Row
from data_prep.tokenizer import Template

# Share of a window's slots that hold tokens; a little above what is promised of the whole.
LEAST_FILL = 0.985


class Layout(Protocol):
    """How items stand in a row.

    Attributes:
        capacity: slots of a row for items and what each brings with it.
        overhead: slots that an item takes beside its tokens.
        longest: tokens of the longest item.
    """

    capacity: int
    overhead: int
    longest: int

    def row(self, items: Sequence[Tokens]) -> Row | PackedRow:
        """Return the row of some items."""


class RunningText:
    """A separator between two documents, and attention over all of the row."""

    def __init__(self, template: Template, separator: int, sequence_length: int) -> None:
        """`template`: special tokens of the row; `separator`: id of the token between two documents in it."""
        self.overhead = 1
        # Each item is counted with a separator behind it, which the last one of a row does not have.
        self.capacity = sequence_length - template.size + 1
        self.longest = self.capacity - 1
        self._template = template
        self._separator = separator

    def row(self, items: Sequence[Tokens]) -> Row:
        """Return the row of some items."""
        separator = np.array([self._separator], items[0].dtype)
        pieces = [piece for item in items for piece in (separator, item)][1:]
        return framed(self._template, pieces)


class Apart:
    """Every document a sequence with special tokens of its own, as if no other were in the row."""

    def __init__(self, template: Template, sequence_length: int, longest_sequence: int | None) -> None:
        """`longest_sequence`: tokens of a sequence, special tokens included; None: a whole row."""
        self.overhead = template.size
        self.capacity = sequence_length
        self.longest = (longest_sequence or sequence_length) - template.size
        self._template = template

    def row(self, items: Sequence[Tokens]) -> PackedRow:
        """Return the row of some items."""
        return PackedRow(tuple(framed(self._template, [item]) for item in items))


def framed(template: Template, pieces: list[Tokens]) -> Row:
    """Return a sequence: special tokens, the pieces one after the other, special tokens."""
    dtype = pieces[0].dtype
    prefix, suffix = np.array(template.prefix, dtype), np.array(template.suffix, dtype)
    return Row(np.concatenate([prefix, *pieces, suffix]))


class BestFitPacker:
    """Rows of a stream of documents, a window at a time."""

    def __init__(self, layout: Layout, window_tokens: int) -> None:
        """See the module's text.

        Args:
            layout: of a row.
            window_tokens: tokens that are packed together; sets memory.
        """
        self._layout = layout
        self._window_tokens = window_tokens
        self._items: list[Tokens] = []
        self._tokens = 0

    def add(self, document: Document) -> Iterator[Row | PackedRow]:
        """Take a document into the window; yield the window's rows once it is full."""
        longest = self._layout.longest
        tokens = document.tokens
        self._items += [tokens[start : start + longest] for start in range(0, len(tokens), longest)]
        self._tokens += len(tokens)
        if self._tokens >= self._window_tokens:
            yield from self.finish()

    def finish(self) -> Iterator[Row | PackedRow]:
        """Yield the rows of the window as it is."""
        items, self._items, self._tokens = self._items, [], 0
        layout = self._layout
        bins = best_fit([len(item) + layout.overhead for item in items], layout.capacity)
        good, poor = divide(bins, layout.capacity, LEAST_FILL)
        for one in good:
            yield layout.row([items[number] for number in one.items])
        yield from self._run_on([items[number] for one in poor for number in one.items])

    def _run_on(self, items: list[Tokens]) -> Iterator[Row | PackedRow]:
        """Yield rows that the items fill to the last slot, broken wherever a row ends."""
        layout = self._layout
        row: list[Tokens] = []
        room = layout.capacity
        for item in items:
            rest = item
            while len(rest):
                if room < layout.overhead + 1:
                    yield layout.row(row)
                    row, room = [], layout.capacity
                head, rest = rest[: room - layout.overhead], rest[room - layout.overhead :]
                row.append(head)
                room -= len(head) + layout.overhead
        if row:
            yield layout.row(row)
