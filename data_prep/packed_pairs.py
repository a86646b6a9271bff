"""Several segment pairs in a row: as many whole ones as fit, those together that fill it best."""

from collections.abc import Iterator

from data_prep.bins import best_fit
from data_prep.documents import Document
from data_prep.pairs import PairBuilder
from data_prep.rows import PackedRow, Row


class PairPacker:
    """Rows that hold as many whole pairs as fit, a window at a time; a pair is never broken."""

    def __init__(self, pairs: PairBuilder, sequence_length: int, window_tokens: int) -> None:
        """`pairs`: builds them; `window_tokens`: tokens that are packed together; sets memory."""
        self._pairs = pairs
        self._sequence_length = sequence_length
        self._window_tokens = window_tokens
        self._held: list[Row] = []
        self._tokens = 0

    def add(self, document: Document) -> Iterator[PackedRow]:
        """Take a document in; yield rows once a window of pairs is full."""
        yield from self._take(self._pairs.add(document))

    def finish(self) -> Iterator[PackedRow]:
        """Yield the rows of all that is left."""
        yield from self._take(self._pairs.finish())
        yield from self._pack()

    def _take(self, pairs: Iterator[Row]) -> Iterator[PackedRow]:
        for pair in pairs:
            self._held.append(pair)
            self._tokens += len(pair.tokens)
            if self._tokens >= self._window_tokens:
                yield from self._pack()

    def _pack(self) -> Iterator[PackedRow]:
        pairs, self._held, self._tokens = self._held, [], 0
        for one in best_fit([len(pair.tokens) for pair in pairs], self._sequence_length):
            yield PackedRow(tuple(pairs[number] for number in one.items))
