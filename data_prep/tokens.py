"""Sentences to token ids."""

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data_prep.documents import Tokens
from data_prep.known_words import word_encoder

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
        self._words = word_encoder(self._tokenizer)

    def encode(self, documents: Sequence[Sequence[str]]) -> list[tuple[Tokens, NDArray[np.int64]]]:
        """Return (tokens, sentence ends) of each document, as `documents.Document` describes them.

        Sentences without a token (of characters that the vocabulary ignores) are left out.
        """
        # A sentence inside a document follows a space: byte-level vocabularies tell " The" from "The".
        texts = [
            f" {sentence}" if position else sentence
            for document in documents
            for position, sentence in enumerate(document)
        ]
        ids = iter(self._encode_all(texts))
        encoded = (list(islice(ids, len(document))) for document in documents)
        return [self._join([found for found in sentences if found]) for sentences in encoded]

    def _encode_all(self, texts: list[str]) -> list[list[int]]:
        if self._words is None:
            return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        known = [self._words.encode(text) for text in texts]
        asked = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        answers = iter(self._tokenizer.encode_batch_fast(asked, add_special_tokens=False))
        return [next(answers).ids if ids is None else ids for ids in known]

    def _join(self, sentences: list[list[int]]) -> tuple[Tokens, NDArray[np.int64]]:
        ends = np.cumsum([len(ids) for ids in sentences], dtype=np.int64)
        tokens: Tokens = np.fromiter(chain.from_iterable(sentences), dtype=self._type)
        return tokens, ends
