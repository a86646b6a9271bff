"""Remembered words give the library's ids."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from data_prep.known_words import KnownWords, WordEncoder, as_bytes, word_encoder
from data_prep.tokenizer import load_tokenizer
from tests.data_prep.corpus import prose

CHARACTERS = st.characters(min_codepoint=0, max_codepoint=0x2FFF, exclude_categories=["Cs"])
TEXTS = st.text(
    st.one_of(st.sampled_from("aAbB zZ09.,-'[]#–—‘’“”…é\t\x1f\x7f\u00ad中"), CHARACTERS), max_size=60
)


def backend(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_str(load_tokenizer(str(folder)).definition)
    tokenizer.encode_special_tokens = True
    return tokenizer


class Library:
    """The tokenizer itself, which remembers what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.asked: list[str] = []

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def __call__(self, texts: list[str]) -> list[bytes]:
        self.asked += texts
        return [as_bytes(self.ids(text)) for text in texts]


def sentences_of(words: WordEncoder, sentences: list[str]) -> list[list[int]]:
    ids, ends = words.encode(sentences)
    return [ids[start:stop].tolist() for start, stop in pairwise([0, *ends.tolist()])]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(
    request: pytest.FixtureRequest, tokenizers: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Library, WordEncoder]:
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizerFast(vocab=str(tokenizers / "vocab.txt"), do_lower_case=request.param).save_pretrained(
        folder
    )
    library = Library(backend(folder))
    words = word_encoder(library.tokenizer, library)
    assert words is not None
    return library, words


@given(sentences=st.lists(TEXTS, max_size=5))
@settings(deadline=None, max_examples=300)
def test_the_same_ids(pair: tuple[Library, WordEncoder], sentences: list[str]) -> None:
    """Plain sentences and others in any order, empty ones and ones of control characters alone too."""
    library, words = pair
    assert sentences_of(words, sentences) == [library.ids(sentence) for sentence in sentences]


def test_special_tokens_in_the_text_and_endless_words(pair: tuple[Library, WordEncoder]) -> None:
    library, words = pair
    plain = ["a [SEP] b [MASK].", "x" * 300, prose(3, 20), "", " ", "##ing", prose(4, 2000)]
    library.asked.clear()
    assert sentences_of(words, plain) == [library.ids(text) for text in plain]
    assert library.asked == []


def test_only_what_is_not_plain_goes_to_the_library(pair: tuple[Library, WordEncoder]) -> None:
    library, words = pair
    library.asked.clear()
    sentences = ["café", "A river.", "a (café, caffè)", "“Night”…", "a\0b"]
    assert sentences_of(words, sentences) == [library.ids(text) for text in sentences]
    assert [text.strip() for text in library.asked] == ["café", "a (café, caffè)", "a\x01b"]


def test_few_words_are_held_and_forgotten_ones_come_again(
    tokenizers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.known_words.MOST_WORDS", 7)
    tokenizer = backend(tokenizers / "bert")
    words = KnownWords(json.loads(tokenizer.to_str())["model"])
    text = [word for seed in range(20) for word in prose(seed, 5).lower().replace(".", "").split()]
    assert len(set(text)) > 14
    for word in text:
        expected = tokenizer.encode(word, add_special_tokens=False).ids
        assert np.frombuffer(words[word.encode()], np.uint32).tolist() == expected
        assert len(words) + len(words._before) <= 16


@pytest.mark.parametrize("name", ["roberta"])
def test_other_rules_go_to_the_library(tokenizers: Path, name: str) -> None:
    library = Library(backend(tokenizers / name))
    assert word_encoder(library.tokenizer, library) is None
