"""Records out of the chunks of a part: lines, or what stands between two tags.

A record that is longer than the limit, or that runs into damage, is given up: the limit bounds memory, whatever
the file holds.
"""

from collections.abc import Iterator

from data_prep.documents import Drop, Fault
from data_prep.sources.parts import Chunk

NEWLINE = b"\n"
Record = bytes | Drop | Fault


class Collector:
    """A record in the making."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        """Append a piece; beyond the limit only count."""
        self._size += len(piece)
        if self._size <= self._limit:
            self._pieces.append(piece)

    def close(self) -> bytes | Drop:
        """Return the record, or that it is too long."""
        return b"".join(self._pieces) if self._size <= self._limit else Drop.TOO_LONG


def lines(chunks: Iterator[Chunk], is_first: bool, limit: int) -> Iterator[Record]:
    """Yield the lines that belong to a part, without their ends; empty ones too.

    A line belongs to the part that owns the line break before it, the first one to the first part.

    Args:
        chunks: of the part, see `parts.chunks`.
        is_first: whether the part is the file's first.
        limit: longest line, in bytes.
    """
    line = Collector(limit) if is_first else None
    for chunk in chunks:
        if line is None and not chunk.own:
            if chunk.is_after:
                return
            continue
        if chunk.text is None:
            yield Fault.TRUNCATED if chunk.truncated else Fault.DAMAGED_BLOCK
            if line is not None:
                yield Drop.DAMAGED
                line = None
            continue
        head, *tail = chunk.text.split(NEWLINE) if chunk.own else chunk.text.split(NEWLINE, 1)
        if line is not None:
            line.add(head)
            if tail:
                yield line.close()
                line = None
        if tail and chunk.own:
            yield from (piece if len(piece) <= limit else Drop.TOO_LONG for piece in tail[:-1])
            line = Collector(limit)
            line.add(tail[-1])
    if line is not None:
        yield line.close()


def elements(chunks: Iterator[Chunk], start: bytes, end: bytes, limit: int) -> Iterator[Record]:
    """Yield what stands from each start tag to its end tag, the tags included.

    An element belongs to the part that owns the start tag's first byte. Elements do not nest.

    Args:
        chunks: of the part, see `parts.chunks`.
        start: the start tag.
        end: the end tag.
        limit: longest element, in bytes.
    """
    element: Collector | None = None
    # The end of the text so far, as long as a tag begun in it may be, and which of its bytes are the part's own.
    rest, rest_own = b"", [False]
    for chunk in chunks:
        if element is None and not chunk.own and not any(rest_own):
            if chunk.is_after:
                return
            rest = b""
            continue
        if chunk.text is None:
            yield Fault.TRUNCATED if chunk.truncated else Fault.DAMAGED_BLOCK
            if element is not None:
                yield Drop.DAMAGED
            element, rest, rest_own = None, b"", [False]
            continue
        text = rest + chunk.text

        def is_own(
            place: int, before: list[bool] = rest_own, own: bool = chunk.own, known: int = len(rest)
        ) -> bool:
            return before[place] if place < known else own

        at = 0
        while True:
            if element is None:
                begin = text.find(start, at)
                if begin >= 0 and not is_own(begin):
                    at = begin + 1
                    continue
                if begin < 0:
                    keep = max(at, len(text) - len(start) + 1)
                    break
                element, at = Collector(limit), begin
            stop = text.find(end, at)
            if stop < 0:
                keep = max(at, len(text) - len(end) + 1)
                element.add(text[at:keep])
                break
            element.add(text[at : stop + len(end)])
            yield element.close()
            element, at = None, stop + len(end)
        rest, rest_own = text[keep:], [is_own(place) for place in range(keep, len(text))]
    if element is not None:
        yield Fault.TRUNCATED
        yield Drop.DAMAGED
