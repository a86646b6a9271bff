"""WordPiece encoding by remembering words: several times as fast as the `tokenizers` library, with the same ids.

BERT's rules cut text into words before any vocabulary is asked, and text repeats its words. So a word's pieces are
found once and looked up ever after, and thousands of sentences are cut and looked up by a few calls into C. This
holds where the rules are plain: sentences of printable ASCII and the usual typographic quotes and dashes.
Every other sentence goes to the library.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

# Beyond ASCII these are punctuation to BERT's rules, and nothing else happens to them.
MARKS = "–—‘’“”…"
# Has a byte for every plain character: bytes are cut and compared faster than text.
CODEC = "cp1252"
PUNCTUATION = [bytes([code]) for code in range(ord("!"), ord("~") + 1) if not chr(code).isalnum()]
PUNCTUATION += [mark.encode(CODEC) for mark in MARKS]
# Stands behind each sentence, as a word of its own with an id of its own.
END = b"\0"
END_ID = 2**32 - 1
NOT_PLAIN = re.compile(f"[^ -~{MARKS}\0]")
# With a number behind it: a sentence that is not plain.
STAND_IN = b"\x01"
# Takes a quarter less time than 256 KiB do.
PART_BYTES = 16 * 1024
# Sentences to their ids, as bytes of uint32.
Ask = Callable[[list[str]], list[bytes]]
# Some 150 bytes each, and twice as many are held at most; fewer cost time, and 75,000 cost 2 %.
MOST_WORDS = 75_000


class KnownWords(dict[bytes, bytes]):
    """Ids of words as bytes of uint32, found at first sight by WordPiece: the longest piece first.

    Attributes:
        asked: ids of the sentences that the library has encoded, by the words that stand for them.
    """

    def __init__(self, model: dict[str, Any]) -> None:
        """Take over a WordPiece model's definition, as `tokenizers` writes it."""
        super().__init__({END: as_bytes([END_ID])})
        self.asked: dict[bytes, bytes] = {}
        self._before: dict[bytes, bytes] = {}
        prefix: str = model["continuing_subword_prefix"]
        vocabulary = {piece: as_bytes([number]) for piece, number in model["vocab"].items()}
        self._beginning = in_codec(vocabulary)
        self._continuing = in_codec(
            {piece.removeprefix(prefix): ids for piece, ids in vocabulary.items() if piece.startswith(prefix)}
        )
        self._unknown = vocabulary[model["unk_token"]]
        self._longest: int = model["max_input_chars_per_word"]

    def __missing__(self, word: bytes) -> bytes:
        if word[:1] == STAND_IN:
            return self.asked[word]
        if len(self) >= MOST_WORDS:
            # Frequent words come over again from there, rare ones are forgotten with the next change.
            self._before = dict(self)
            self.clear()
            self[END] = as_bytes([END_ID])
        ids = self[word] = self._before.get(word) or self.pieces(word)
        return ids

    def pieces(self, word: bytes) -> bytes:
        """Return the ids of a word's pieces; of the unknown token where it cannot be cut into known ones."""
        length = len(word)
        if length > self._longest:
            return self._unknown
        ids = b""
        start = 0
        find = self._beginning.get
        while start < length:
            end = length
            while (found := find(word[start:end])) is None:
                end -= 1
                if end == start:
                    return self._unknown
            ids += found
            start, find = end, self._continuing.get
        return ids


def in_codec(vocabulary: dict[str, bytes]) -> dict[bytes, bytes]:
    """Return the pieces that plain words can hold, as bytes, and their ids."""
    marks = {mark: vocabulary[mark] for mark in MARKS if mark in vocabulary}
    ascii_pieces = {piece: ids for piece, ids in vocabulary.items() if piece.isascii()}
    return {piece.encode(CODEC): ids for piece, ids in (ascii_pieces | marks).items()}


class WordEncoder:
    """Encodes sentences with BERT's rules."""

    def __init__(self, model: dict[str, Any], lower_case: bool, ask: Ask) -> None:
        """See `word_encoder`; `model` is the WordPiece model's definition."""
        self._words = KnownWords(model)
        self._lower_case = lower_case
        self._ask = ask

    def encode(self, sentences: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all sentences, without special tokens, and where in them each sentence ends."""
        text = self._plain(sentences).encode(CODEC)
        text = spaced(text.lower() if self._lower_case else text)
        ids_of = self._words.__getitem__
        ids = np.frombuffer(
            b"".join([b"".join(map(ids_of, part.split())) for part in parts(text)]), np.uint32
        )
        is_end = ids == END_ID
        # The n-th end has n ends before it.
        return ids[~is_end], np.flatnonzero(is_end) - np.arange(len(sentences))

    def _plain(self, sentences: Sequence[str]) -> str:
        """Return a plain text: an END behind each sentence, and one word for each that the library must encode."""
        end = END.decode()
        if any(end in sentence for sentence in sentences):
            # By BERT's rules one control character is as good as another.
            sentences = [sentence.replace(end, "\x01") for sentence in sentences]
        text = f" {end} ".join([*sentences, ""])
        pieces: list[str] = []
        asked: list[str] = []
        done = 0
        for odd in NOT_PLAIN.finditer(text):
            if odd.start() >= done:
                start, stop = text.rfind(end, 0, odd.start()) + 1, text.find(end, odd.start())
                pieces += [text[done:start], f" {STAND_IN.decode()}{len(asked)} "]
                asked.append(text[start:stop])
                done = stop
        self._words.asked = {
            STAND_IN + b"%d" % number: ids for number, ids in enumerate(self._ask(asked) if asked else [])
        }
        return "".join([*pieces, text[done:]])


def spaced(text: bytes) -> bytes:
    """Set spaces around every punctuation mark of a plain text."""
    for mark in PUNCTUATION:
        # Most marks are rare, and looking for one is much cheaper than a copy of the text.
        if mark in text:
            text = text.replace(mark, b" " + mark + b" ")
    return text


def parts(text: bytes) -> Iterator[bytes]:
    """Cut a text between words, so that the words of each part fit into a core's cache together."""
    start = 0
    while start < len(text):
        stop = text.find(b" ", start + PART_BYTES)
        stop = stop if stop >= 0 else len(text)
        yield text[start:stop]
        start = stop


def as_bytes(ids: Sequence[int]) -> bytes:
    """Return ids as bytes of a uint32 array."""
    # Several times as fast as an array of numpy's for a few numbers.
    return struct.pack(f"={len(ids)}I", *ids)


def word_encoder(tokenizer: Tokenizer, ask: Ask) -> WordEncoder | None:
    """Return the encoder of a tokenizer with exactly BERT's rules; None for any other tokenizer.

    Args:
        tokenizer: with all settings that it will be used with.
        ask: the tokenizer itself, for sentences that are not plain.
    """
    definition = json.loads(tokenizer.to_str())
    normalizer = definition["normalizer"] or {}
    has_berts_rules = (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and (definition["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and definition["model"].get("type") == "WordPiece"
        # Added words are found in the text before any rule applies.
        and all(token["special"] for token in definition["added_tokens"])
        and tokenizer.encode_special_tokens
    )
    return WordEncoder(definition["model"], bool(normalizer["lowercase"]), ask) if has_berts_rules else None
