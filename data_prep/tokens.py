"""Sentences to token ids."""

from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.documents import Tokens
from data_prep.known_words import as_bytes, word_encoder

LARGEST_NARROW_VOCABULARY = 65_536


def token_type(vocabulary_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return the narrowest of the two shard types that holds every id."""
    return np.uint16 if vocabulary_size <= LARGEST_NARROW_VOCABULARY else np.uint32


class Encoder:
    """Encodes the sentences of many documents in one call, which keeps the Rust library busy."""

    def __init__(self, definition: str, vocabulary_size: int) -> None:
        """Build the tokenizer from its JSON definition."""
        self._tokenizer = Tokenizer.from_str(definition)
        # "[SEP]" in an article about BERT is text, not the end of a segment.
        self._tokenizer.encode_special_tokens = True
        self._type = token_type(vocabulary_size)
        self._words = word_encoder(self._tokenizer, self._ask)

    def encode(self, documents: Sequence[Sequence[str]]) -> list[tuple[Tokens, NDArray[np.int64]]]:
        """Return (tokens, sentence ends) of each document, as `documents.Document` describes them.

        Sentences without a token (of characters that the vocabulary ignores) are left out.
        """
        ids, ends = self._encode_all(documents)
        tokens: Tokens = ids.astype(self._type)
        sentences = np.cumsum([0, *map(len, documents)])
        starts = np.concatenate([[0], ends])[sentences]
        has_tokens = np.diff(ends, prepend=0) > 0
        ends = ends[has_tokens]
        sentences = np.concatenate([[0], np.cumsum(has_tokens)])[sentences]
        return [
            (tokens[start:stop], ends[first:last] - start)
            for (start, stop), (first, last) in zip(
                pairwise(starts.tolist()), pairwise(sentences.tolist()), strict=True
            )
        ]

    def _encode_all(self, documents: Sequence[Sequence[str]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all sentences, one after the other, and where in them each sentence ends."""
        if self._words is not None:
            return self._words.encode(list(chain.from_iterable(documents)))
        # A sentence inside a document follows a space: byte-level vocabularies tell " The" from "The".
        found = self._ask(
            [
                f" {sentence}" if position else sentence
                for document in documents
                for position, sentence in enumerate(document)
            ]
        )
        ids = np.frombuffer(b"".join(found), np.uint32)
        return ids, np.cumsum([len(one) // ids.itemsize for one in found], dtype=np.int64)

    def _ask(self, texts: list[str]) -> list[bytes]:
        """Return the library's ids of each text, as bytes of uint32."""
        return [
            as_bytes(found.ids)
            for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ]
