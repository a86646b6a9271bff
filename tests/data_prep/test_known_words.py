"""Remembered words give the library's ids."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from data_prep.known_words import KnownWords, WordEncoder, word_encoder
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


def ids_of(words: WordEncoder, text: str) -> list[int] | None:
    (ids,) = words.encode([text])
    return None if ids is None else np.frombuffer(ids, np.uint16).tolist()


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pair(
    request: pytest.FixtureRequest, tokenizers: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, WordEncoder]:
    folder = tmp_path_factory.mktemp("bert")
    BertTokenizerFast(vocab=str(tokenizers / "vocab.txt"), do_lower_case=request.param).save_pretrained(
        folder
    )
    tokenizer = backend(folder)
    words = word_encoder(tokenizer, np.uint16)
    assert words is not None
    return tokenizer, words


@given(text=TEXTS)
@settings(deadline=None, max_examples=300)
def test_the_same_ids(pair: tuple[Tokenizer, WordEncoder], text: str) -> None:
    tokenizer, words = pair
    ids = ids_of(words, text)
    assert ids is None or ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_special_tokens_in_the_text_and_endless_words(pair: tuple[Tokenizer, WordEncoder]) -> None:
    tokenizer, words = pair
    for text in ("a [SEP] b [MASK].", "x" * 300, prose(3, 20), "", " ", "##ing"):
        assert ids_of(words, text) == tokenizer.encode(text, add_special_tokens=False).ids
    assert words.encode(["café", "a (café)"]) == [None, None]


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
        assert np.frombuffer(words[word], np.uint32).tolist() == expected
        assert len(words) + len(words._before) <= 16


@pytest.mark.parametrize("name", ["roberta"])
def test_other_rules_go_to_the_library(tokenizers: Path, name: str) -> None:
    assert word_encoder(backend(tokenizers / name), np.uint16) is None
