"""WordPiece encoding by remembering words: several times as fast as the `tokenizers` library, with the same ids.

BERT's rules cut text into words before any vocabulary is asked, and text repeats its words. So a word's pieces are
found once and looked up ever after, and thousands of sentences are cut and looked up by a few calls into C. This
holds where the rules are plain: sentences of printable ASCII and the usual typographic quotes and dashes.
Everything else goes to the library.
"""

import json
import re
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# Beyond ASCII these are punctuation to BERT's rules, and nothing else happens to them.
MARKS = "–—‘’“”…"
PLAIN = re.compile(f"[ -~{MARKS}]*")
PUNCTUATION = "".join(map(chr, range(ord("!"), ord("~") + 1))) + MARKS
# Stands behind each sentence, as a word of its own with an id of its own.
END = "\0"
END_ID = 2**32 - 1
# Some 150 bytes each, and twice as many are held at most; fewer cost time, and 75,000 cost 2 %.
MOST_WORDS = 75_000


class KnownWords(dict[str, bytes]):
    """Ids of words as bytes of uint32, found at first sight by WordPiece: the longest piece first."""

    def __init__(self, model: dict[str, Any]) -> None:
        """Take over a WordPiece model's definition, as `tokenizers` writes it."""
        super().__init__({END: as_bytes([END_ID])})
        self._before: dict[str, bytes] = {}
        self._vocabulary: dict[str, int] = model["vocab"]
        self._unknown = [self._vocabulary[model["unk_token"]]]
        self._prefix: str = model["continuing_subword_prefix"]
        self._longest: int = model["max_input_chars_per_word"]

    def __missing__(self, word: str) -> bytes:
        if len(self) >= MOST_WORDS:
            # Frequent words come over again from there, rare ones are forgotten with the next change.
            self._before = dict(self)
            self.clear()
            self[END] = as_bytes([END_ID])
        ids = self[word] = self._before.get(word) or as_bytes(self.pieces(word))
        return ids

    def pieces(self, word: str) -> list[int]:
        """Return the ids of a word's pieces; of the unknown token where it cannot be cut into known ones."""
        if len(word) > self._longest:
            return self._unknown
        ids = []
        start = 0
        prefix = ""
        while start < len(word):
            for end in range(len(word), start, -1):
                found = self._vocabulary.get(prefix + word[start:end])
                if found is not None:
                    break
            else:
                return self._unknown
            ids.append(found)
            start, prefix = end, self._prefix
        return ids


class WordEncoder:
    """Encodes plain sentences with BERT's rules."""

    def __init__(self, model: dict[str, Any], lower_case: bool, dtype: type[np.unsignedinteger[Any]]) -> None:
        """See `word_encoder`; `model` is the WordPiece model's definition."""
        self._ids_of = KnownWords(model).__getitem__
        self._lower_case = lower_case
        self._dtype = dtype

    def encode(self, sentences: Sequence[str]) -> list[bytes | None]:
        """Return the ids of each sentence as bytes of an array, without special tokens.

        None for a sentence that the library must encode.
        """
        is_plain = [PLAIN.fullmatch(sentence) is not None for sentence in sentences]
        plain = [sentence for sentence, one in zip(sentences, is_plain, strict=True) if one]
        found = iter(self._encode_plain(plain))
        return [next(found) if one else None for one in is_plain]

    def _encode_plain(self, sentences: list[str]) -> list[bytes]:
        text = f" {END} ".join([*sentences, ""])
        words = spaced(text.lower() if self._lower_case else text).split()
        ids = np.frombuffer(b"".join(map(self._ids_of, words)), np.uint32)
        is_end = ids == END_ID
        content = ids[~is_end].astype(self._dtype)
        # The n-th end has n ends before it.
        ends = (np.flatnonzero(is_end) - np.arange(len(sentences))) * content.itemsize
        data = content.tobytes()
        starts = [0, *ends.tolist()]
        return [data[start:end] for start, end in pairwise(starts)]


def spaced(text: str) -> str:
    """Set spaces around every punctuation mark of a plain text."""
    for mark in PUNCTUATION:
        # Most marks are rare, and looking for one is much cheaper than a copy of the text.
        if not mark.isalnum() and mark in text:
            text = text.replace(mark, f" {mark} ")
    return text


def as_bytes(ids: Sequence[int]) -> bytes:
    """Return ids as bytes of a uint32 array."""
    # Several times as fast as an array of numpy's for a few numbers.
    return struct.pack(f"={len(ids)}I", *ids)


def word_encoder(tokenizer: Tokenizer, dtype: type[np.unsignedinteger[Any]]) -> WordEncoder | None:
    """Return the encoder of a tokenizer with exactly BERT's rules; None for any other tokenizer.

    Args:
        tokenizer: with all settings that it will be used with.
        dtype: of the ids.
    """
    definition = json.loads(tokenizer.to_str())
    normalizer = definition["normalizer"] or {}
    has_berts_rules = (
        normalizer.get("type") == "BertNormalizer"
        and (definition["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and definition["model"].get("type") == "WordPiece"
        # Added words are found in the text before any rule applies.
        and all(token["special"] for token in definition["added_tokens"])
        and tokenizer.encode_special_tokens
    )
    return WordEncoder(definition["model"], bool(normalizer["lowercase"]), dtype) if has_berts_rules else None
