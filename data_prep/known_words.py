"""WordPiece encoding by remembering words: several times as fast as the `tokenizers` library, with the same ids.

BERT's rules cut text into words before any vocabulary is asked, and text repeats its words. So the pieces of
a word are asked of the library once and looked up ever after. This holds where the rules are plain: sentences of
printable ASCII and the usual typographic quotes and dashes. Everything else goes to the library.
"""

import json
import re
from itertools import chain

from tokenizers import Tokenizer

# Beyond ASCII these are punctuation to BERT's rules, and nothing else happens to them.
PLAIN = re.compile("[ -~–—‘’“”…]*")
LOWER_CASE = re.compile("[a-z0-9]+|[^ a-z0-9]")
ANY_CASE = re.compile("[A-Za-z0-9]+|[^ A-Za-z0-9]")
# Some 200 bytes each. Rare words are asked again after that.
MOST_WORDS = 500_000


class KnownWords(dict[str, list[int]]):
    """Ids of words, asked of the tokenizer at first sight."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Know nothing yet."""
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(self) >= MOST_WORDS:
            self.clear()
        self[word] = ids
        return ids


class WordEncoder:
    """Encodes plain sentences with BERT's rules."""

    def __init__(self, tokenizer: Tokenizer, lower_case: bool) -> None:
        """See `word_encoder`."""
        self._ids_of = KnownWords(tokenizer).__getitem__
        self._lower_case = lower_case
        self._words = (LOWER_CASE if lower_case else ANY_CASE).findall

    def encode(self, sentence: str) -> list[int] | None:
        """Return the ids, without special tokens; None for a sentence that the library must encode."""
        if PLAIN.fullmatch(sentence) is None:
            return None
        words = self._words(sentence.lower() if self._lower_case else sentence)
        return list(chain.from_iterable(map(self._ids_of, words)))


def word_encoder(tokenizer: Tokenizer) -> WordEncoder | None:
    """Return the encoder of a tokenizer with exactly BERT's rules; None for any other tokenizer."""
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
    return WordEncoder(tokenizer, bool(normalizer["lowercase"])) if has_berts_rules else None
