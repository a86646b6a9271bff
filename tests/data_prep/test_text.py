"""Cleaning, sentences, identities, the split by hash."""

import hashlib
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import clean, unwrap
from data_prep.documents import identify, split_of
from data_prep.sentences import split_sentences


def test_clean() -> None:
    assert clean("A\u00a0b \t c\u200b\ufeff\x07\r\n\r\n \nso\u00adft  e\u0301\n") == "A b c\nsoft é"


def test_joiners_of_persian_stay() -> None:
    assert clean("می\u200cخواهم") == "می\u200cخواهم"


def test_lone_surrogates_go() -> None:
    """JSON can hold them; no encoder can."""
    assert clean("a\ud800b").encode() == b"ab"


@given(st.text(max_size=100))
@settings(deadline=None)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean(text)
    assert clean(once) == once


def test_unwrap() -> None:
    assert unwrap("a\nb\n\n\n  c\nd\n \t \ne") == "a b\nc d\ne"


def test_sentences() -> None:
    text = 'He met Dr. Smith at 5 p.m. on Jan. 5. "It is late," he said.\nA title\nWhy? Because.'
    assert split_sentences(text) == [
        "He met Dr. Smith at 5 p.m. on Jan. 5.",
        '"It is late," he said.',
        "A title",
        "Why?",
        "Because.",
    ]


@given(st.text(alphabet=st.sampled_from("ab .!?\"'()A1\né中。"), max_size=200))
@settings(deadline=None)
def test_no_character_is_lost_between_sentences(text: str) -> None:
    cleaned = clean(text)
    joined = "".join(split_sentences(cleaned))
    assert re.sub(r"\s", "", joined) == re.sub(r"\s", "", cleaned)


def test_duplicates_differ_in_case_and_space_only() -> None:
    assert identify("The  CAT\nsat") == identify("the cat sat")
    assert identify("the cat sat") != identify("the cat sits")


def test_the_split_is_near_its_fraction_and_only_grows_with_it() -> None:
    identities = [identify(f"document {number}") for number in range(20_000)]
    small = {identity for identity in identities if split_of(identity, 0.05) == "validation"}
    large = {identity for identity in identities if split_of(identity, 0.10) == "validation"}
    assert small < large
    assert abs(len(small) / len(identities) - 0.05) < 0.005


def test_the_split_of_a_text_is_written_in_stone() -> None:
    """A later version must not move held-out documents into the training data."""
    splits = "".join(split_of(identify(f"document {number}"), 0.5)[0] for number in range(32))
    assert splits == "vvtvtvvtvvvtvvvttvvvvvvttvttvttv"


@given(st.text(alphabet="ab. \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x00\x0e\x1b\x7f", max_size=40))
def test_ascii_goes_a_quicker_way_to_the_same(text: str) -> None:
    """What `clean` and `identify` do of all other text, in plain Python."""
    visible = "".join(character for character in text if character not in "\x00\x0e\x1b\x7f")
    paragraphs = (" ".join(line.split()) for line in visible.splitlines())
    cleaned = "\n".join(paragraph for paragraph in paragraphs if paragraph)
    assert clean(text) == cleaned
    normalised = " ".join(text.casefold().split())
    digest = hashlib.blake2b(normalised.encode(), digest_size=8).digest()
    assert identify(text) == int.from_bytes(digest, "little")
