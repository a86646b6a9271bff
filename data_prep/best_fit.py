"""Packed rows that break as few documents as possible (best-fit decreasing; Ding et al. 2024, arXiv 2404.10830).

A window of documents is cut into items: of a document longer than a row, full rows and a rest. The longest item
first, each goes into the row that it fills best. Where the lengths do not fit each other well, the emptiest rows are
made again, their items running on from row to row, until the window is full enough. No token is dropped or
doubled, and a separator stands between two documents in a row.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data_prep.documents import Document, Tokens
from data_prep.rows import Row
from data_prep.tokenizer import Template

# Share of a window's slots that hold tokens; a little above what is promised of the whole.
LEAST_FILL = 0.985


class Bin(NamedTuple):
    """Items that share a row, and the slots that they leave, counted with a separator to come."""

    items: list[Tokens]
    room: int


class BestFitPacker:
    """Rows of a stream of documents, a window at a time."""

    def __init__(self, template: Template, separator: int, sequence_length: int, window_tokens: int) -> None:
        """See the module's text.

        Args:
            template: special tokens of a single segment.
            separator: id of the token between two documents in one row.
            sequence_length: token slots of a row.
            window_tokens: tokens that are packed together; sets memory.
        """
        self._template = template
        self._separator = separator
        # Each item is counted with a separator behind it, which the last one of a row does not have.
        self._capacity = sequence_length - template.size + 1
        self._window_tokens = window_tokens
        self._items: list[Tokens] = []
        self._tokens = 0

    def add(self, document: Document) -> Iterator[Row]:
        """Take a document into the window; yield the window's rows once it is full."""
        longest = self._capacity - 1
        tokens = document.tokens
        self._items += [tokens[start : start + longest] for start in range(0, len(tokens), longest)]
        self._tokens += len(tokens)
        if self._tokens >= self._window_tokens:
            yield from self.finish()

    def finish(self) -> Iterator[Row]:
        """Yield the rows of the window as it is."""
        items, self._items, self._tokens = self._items, [], 0
        good, poor = divide(best_fit(items, self._capacity), self._capacity)
        for one in good:
            yield self._row(one.items)
        yield from self._run_on([item for one in poor for item in one.items])

    def _run_on(self, items: list[Tokens]) -> Iterator[Row]:
        """Yield rows that the items fill to the last slot, broken wherever a row ends."""
        row: list[Tokens] = []
        room = self._capacity
        for item in items:
            rest = item
            while len(rest):
                if room < 2:  # a separator and a token
                    yield self._row(row)
                    row, room = [], self._capacity
                head, rest = rest[: room - 1], rest[room - 1 :]
                row.append(head)
                room -= len(head) + 1
        if row:
            yield self._row(row)

    def _row(self, items: list[Tokens]) -> Row:
        dtype = items[0].dtype
        separator = np.array([self._separator], dtype)
        pieces = [piece for item in items for piece in (separator, item)][1:]
        prefix, suffix = np.array(self._template.prefix, dtype), np.array(self._template.suffix, dtype)
        return Row(np.concatenate([prefix, *pieces, suffix]))


def best_fit(items: list[Tokens], capacity: int) -> list[Bin]:
    """Put items, the longest first, each into the bin that it leaves the least room in.

    Args:
        items: none longer than `capacity - 1`.
        capacity: slots of a bin; an item takes one more than it has tokens.
    """
    by_room: dict[int, list[list[Tokens]]] = {}
    rooms: list[int] = []
    for item in sorted(items, key=len, reverse=True):
        cost = len(item) + 1
        place = bisect_left(rooms, cost)
        if place < len(rooms):
            room = rooms[place]
            held = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        else:
            room, held = capacity, []
        held.append(item)
        left = room - cost
        if left not in by_room:
            by_room[left] = []
            insort(rooms, left)
        by_room[left].append(held)
    return [Bin(held, room) for room in rooms for held in by_room[room]]


def divide(bins: list[Bin], capacity: int) -> tuple[list[Bin], list[Bin]]:
    """Return (bins that stay, the emptiest ones, which must be made again for all to be full enough).

    Args:
        bins: the fullest first.
        capacity: slots of a bin.
    """
    costs = [capacity - one.room for one in bins]
    total = sum(costs)
    again = 0
    for kept in range(len(bins), -1, -1):
        rows = kept + -(-again // capacity)
        if not rows or total >= LEAST_FILL * rows * capacity or not kept:
            return bins[:kept], bins[kept:]
        again += costs[kept - 1]
    return [], bins
