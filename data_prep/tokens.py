"""Sentences to token ids."""

from collections.abc import Sequence
from itertools import accumulate, islice

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
        self._words = word_encoder(self._tokenizer, self._type)

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
        return [self._join(list(filter(None, islice(ids, len(document))))) for document in documents]

    def _encode_all(self, texts: list[str]) -> list[bytes]:
        """Return the ids of each text as bytes of an array."""
        if self._words is None:
            return self._ask(texts)
        known = self._words.encode(texts)
        asked = [text for text, ids in zip(texts, known, strict=True) if ids is None]
        answers = iter(self._ask(asked))
        return [next(answers) if ids is None else ids for ids in known]

    def _ask(self, texts: list[str]) -> list[bytes]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(found.ids, self._type).tobytes() for found in encodings]

    def _join(self, sentences: list[bytes]) -> tuple[Tokens, NDArray[np.int64]]:
        tokens: Tokens = np.frombuffer(b"".join(sentences), self._type)
        ends = np.array(list(accumulate(map(len, sentences))), np.int64) // tokens.itemsize
        return tokens, ends
