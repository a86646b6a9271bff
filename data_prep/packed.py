"""Packed rows: text runs on over sentences and documents (Liu et al. 2019, section 4.2).

Each row is filled to its last slot and a separator stands between documents; no token is dropped or doubled.
With `whole_sentences` a row ends before a sentence that no longer fits, which is RoBERTa's FULL-SENTENCES,
at the price of some padding.
"""

from collections.abc import Iterator

import numpy as np

from data_prep.documents import Document, Tokens
from data_prep.rows import Row
from data_prep.tokenizer import Template


class Packer:
    """Rows of a stream of documents; holds less than one row."""

    def __init__(
        self, template: Template, separator: int, sequence_length: int, whole_sentences: bool = False
    ) -> None:
        """See the module's text.

        Args:
            template: special tokens of a single segment.
            separator: id of the token between two documents in one row.
            sequence_length: token slots of a row.
            whole_sentences: break a sentence only when it is longer than a row.
        """
        self._template = template
        self._separator = separator
        self._capacity = sequence_length - template.size
        self._whole_sentences = whole_sentences
        self._parts: list[Tokens] = []
        self._room = self._capacity

    def add(self, document: Document) -> Iterator[Row]:
        """Append a document; yield the rows that it fills."""
        yield from self._separate(document)
        for unit in document.sentences() if self._whole_sentences else [document.tokens]:
            if self._whole_sentences and self._room < len(unit) and self._room < self._capacity:
                yield from self.finish()
            yield from self._append(unit)

    def finish(self) -> Iterator[Row]:
        """Yield the row in the making, if it holds anything."""
        if not self._parts:
            return
        dtype = self._parts[0].dtype
        prefix = np.array(self._template.prefix, dtype)
        suffix = np.array(self._template.suffix, dtype)
        yield Row(np.concatenate([prefix, *self._parts, suffix]))
        self._parts, self._room = [], self._capacity

    def _separate(self, document: Document) -> Iterator[Row]:
        """Set a separator after the document before, or end its row where a separator would end it anyway."""
        if not self._parts:
            return
        needed = int(document.sentence_ends[0]) if self._whole_sentences else 1
        if self._room < 1 + needed:
            yield from self.finish()
        else:
            self._parts.append(np.array([self._separator], document.tokens.dtype))
            self._room -= 1

    def _append(self, unit: Tokens) -> Iterator[Row]:
        while len(unit):
            head, unit = unit[: self._room], unit[self._room :]
            self._parts.append(head)
            self._room -= len(head)
            if not self._room:
                yield from self.finish()
