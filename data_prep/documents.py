"""What travels between the stages: a tokenized document, or the reason why there is none."""

import hashlib
import unicodedata
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparse_pretrain.data.manifest import Split

# What `str.split` takes for white space in ASCII.
SPACES = bytes.maketrans(b"\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f", b" " * 9)
Tokens: TypeAlias = NDArray[np.unsignedinteger[Any]]


class Drop(Enum):
    """Why a document is not in the prepared data; the values are the manifest's keys."""

    REDIRECT = "redirect"
    NOT_AN_ARTICLE = "not_an_article"
    DISAMBIGUATION = "disambiguation"
    NO_TEXT = "no_text"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    DAMAGED = "damaged"
    OTHER_LANGUAGE = "other_language"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"


class Fault(Enum):
    """What is wrong with a source whose good parts are used all the same; the values are the manifest's keys."""

    REPAIRED_UNICODE = "repaired_unicode"
    DAMAGED_BLOCK = "damaged_block"
    TRUNCATED = "truncated"
    BAD_ENCODING = "bad_encoding"
    UNREADABLE_FILE = "unreadable_file"


class Raw(NamedTuple):
    """A document as a source gives it.

    Attributes:
        text: before extraction; of a dropped document its title or beginning, for the sample.
        drop: why there is no document, where that is clear already.
        fault: damage met while this document was read; a place without a document has `drop` DAMAGED.
    """

    text: str = ""
    drop: Drop | None = None
    fault: Fault | None = None


class Document(NamedTuple):
    """One document, ready to be cut into rows.

    Attributes:
        identity: 64-bit hash of the text, see `identify`.
        characters: length of the cleaned text.
        tokens: uint16 or uint32 [tokens], the sentences one after the other, no special tokens.
        sentence_ends: int64 [sentences], index into `tokens` after each sentence's last token; rising.
    """

    identity: int
    characters: int
    tokens: Tokens
    sentence_ends: NDArray[np.int64]

    def sentences(self) -> list[Tokens]:
        """Return a view of the tokens for each sentence."""
        return [self.tokens[start:end] for start, end in pairwise([0, *self.sentence_ends.tolist()])]


def identify(text: str) -> int:
    """Return a 64-bit hash that ignores letter case, white space and Unicode's compatibility variants.

    Two documents with one identity are duplicates. Among 10 million documents the chance of a false
    duplicate is 3 in a million (n**2 / 2**65).
    """
    if text.isascii():  # its own normal form
        normalised = squeezed(text.encode().lower().translate(SPACES), b" ").strip(b" ")
    else:
        composed = unicodedata.normalize("NFKC", text).casefold()
        normalised = " ".join(composed.split()).encode()
    return int.from_bytes(hashlib.blake2b(normalised, digest_size=8).digest(), "little")


def squeezed(text: bytes, character: bytes) -> bytes:
    """Return the text with every run of a character as a single one."""
    while 2 * character in text:
        text = text.replace(2 * character, character)
    return text


def split_of(identity: int, validation_fraction: float) -> Split:
    """Return the split of a document: a function of its text and the fraction alone.

    Neither the seed nor the other documents matter, so a text held out once stays held out when
    sources are added, reordered or prepared with another seed. A larger fraction only adds to what a
    smaller one held out.
    """
    # The identity is hashed again: pair building draws from it too, and must not see held-out-ness in it.
    digest = hashlib.blake2b(identity.to_bytes(8, "little"), digest_size=8, person=b"split").digest()
    return "validation" if int.from_bytes(digest, "little") < validation_fraction * 2**64 else "train"
