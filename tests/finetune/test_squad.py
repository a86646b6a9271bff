"""SQuAD: the official scorers' rules case by case, windows, and the choice of an answer."""

import string
import unicodedata
from typing import Any

import numpy as np
import pytest

from sparse_pretrain.finetune.kinds.span import tokens_of_answer
from sparse_pretrain.finetune.recipe import SpanSection
from sparse_pretrain.finetune.spans import Window, best_answer, candidates
from sparse_pretrain.finetune.squad import exact, normalized, overlap_f1, squad_metrics

NORMALIZED = {
    # Lower case, ASCII punctuation and articles go, spaces shrink: in this order.
    "The  Quick, Brown Fox!": "quick brown fox",
    "A.": "",
    "a an the": "",
    "theater": "theater",
    "the-end": "theend",
    "an\tapple\na day": "apple day",
    "U.S.A.": "usa",
    "10,000": "10000",
    # Punctuation outside ASCII stays; letters outside ASCII are letters.
    "«Été»": "«été»",
    "1914–1918": "1914–1918",
    "naïve café": "naïve café",
    "Straße": "straße",
    "東京": "東京",
    # An article is one only between word boundaries; a letter of any alphabet is part of a word.
    "aé": "aé",
    "the’s": "’s",
    "non\u00a0breaking": "non breaking",
}


@pytest.mark.parametrize("text", NORMALIZED)
def test_normalization(text: str) -> None:
    assert normalized(text) == NORMALIZED[text]
    assert not set(normalized(text)) & set(string.punctuation)


def test_composed_and_decomposed_letters_are_not_the_same_as_in_the_official_scorer() -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert exact(composed, decomposed) == 0.0


# said, truths, F1 and exact match by hand, of version 1.1 and of 2.0.
SCORES: list[tuple[str, list[str], tuple[float, float], tuple[float, float]]] = [
    ("the Denver Broncos", ["Denver Broncos", "Broncos"], (1.0, 1.0), (1.0, 1.0)),
    # precision 2/3, recall 1: 0.8; the best truth counts.
    ("Saint Denver Broncos", ["Denver Broncos", "Panthers"], (0.8, 0.0), (0.8, 0.0)),
    # Words count as often as both have them: 2 of 3 and 2 of 2.
    ("to be be", ["be be"], (0.8, 0.0), (0.8, 0.0)),
    ("Panthers", ["Denver"], (0.0, 0.0), (0.0, 0.0)),
    # F1 and exact match may come of different truths.
    ("Denver", ["Denver Broncos", "denver!"], (1.0, 1.0), (1.0, 1.0)),
    # An answer that is nothing but an article: 1.1 gives no F1 to two empty sides, 2.0 drops such a truth.
    ("the", ["a"], (0.0, 1.0), (1.0, 1.0)),
    ("the", ["a", "cat"], (0.0, 1.0), (0.0, 0.0)),
    ("", ["Denver"], (0.0, 0.0), (0.0, 0.0)),
]


@pytest.mark.parametrize("case", SCORES, ids=lambda case: case[0] or "nothing")
def test_scores_of_both_versions(case: tuple[Any, ...]) -> None:
    said, truths, first, second = case
    for no_answer, (f1, match) in ((False, first), (True, second)):
        metrics = squad_metrics([said], [truths], no_answer)
        assert (metrics["f1"], metrics["exact_match"]) == (pytest.approx(f1), match)


def test_no_answer_counts_as_right_only_where_there_is_none() -> None:
    metrics = squad_metrics(["", "", "cat", "cat"], [[], ["cat"], [], ["the cat"]], no_answer=True)
    assert metrics == {
        "f1": 0.5,
        "exact_match": 0.5,
        "answerable_f1": 0.5,
        "answerable_exact_match": 0.5,
        "unanswerable_accuracy": 0.5,
    }
    assert overlap_f1("", "", no_answer=True) == 1.0
    assert overlap_f1("", "", no_answer=False) == 0.0


CONTEXT = "aa bb cc dd"
OFFSETS = [None, None, (0, 2), (3, 5), (6, 8), (9, 11), None]


def window(start: list[float], end: list[float], offsets: Any = OFFSETS) -> Window:
    return Window(np.array(start, np.float32), np.array(end, np.float32), offsets)


def test_the_best_span_runs_forward_is_short_enough_and_inside_the_context() -> None:
    # The question (place 1) has the best start, place 5 the best end before any start.
    one = window([0, 9, 1, 0, 5, 4, 0], [0, 9, 6, 1, 0, 2, 9])
    found = candidates([one], SpanSection())
    assert [CONTEXT[span.first : span.last] for span in found[:3]] == ["aa", "cc dd", "dd"]
    assert [span.score for span in found[:3]] == [7, 7, 6]
    short = SpanSection(max_answer_length=1)
    assert {span.last - span.first for span in candidates([one], short)} == {2}
    assert len(candidates([one], SpanSection(n_best=2))) == 2
    assert best_answer(CONTEXT, [one], SpanSection()) == "aa"


def test_a_span_in_two_overlapping_windows_counts_once_with_its_better_score() -> None:
    first = window([0, 0, 1, 2, 3, 0, 0], [0, 0, 0, 0, 3, 0, 0])
    second = window([0, 5, 0, 0], [0, 5, 0, 0], [None, (6, 8), (9, 11), None])
    found = candidates([first, second], SpanSection())
    assert [(span.first, span.last) for span in found].count((6, 8)) == 1
    assert (found[0].first, found[0].last, found[0].score) == (6, 8, 10)


def test_no_answer_wins_only_by_more_than_the_threshold_and_in_every_window() -> None:
    sure = window([9, 0, 1, 0, 0, 0, 0], [9, 0, 1, 0, 0, 0, 0])
    section = SpanSection(no_answer=True)
    assert best_answer(CONTEXT, [sure], SpanSection()) == "aa"
    assert best_answer(CONTEXT, [sure], section) == ""
    assert best_answer(CONTEXT, [sure], section.model_copy(update={"null_threshold": 16.0})) == "aa"
    assert best_answer(CONTEXT, [sure], section.model_copy(update={"null_threshold": 15.9})) == ""
    unsure = window([0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0.5, 0, 0])
    assert best_answer(CONTEXT, [sure, unsure], section) == "aa"
    assert best_answer("", [window([1, 1], [1, 1], [None, None])], section) == ""


def test_an_answer_belongs_to_a_window_only_as_a_whole() -> None:
    assert tokens_of_answer(OFFSETS, "bb cc", 3) == (3, 4)
    assert tokens_of_answer(OFFSETS, "b", 4) == (3, 3)
    assert tokens_of_answer(OFFSETS[:5], "cc dd", 6) is None
    assert tokens_of_answer([None, (3, 5)], "aa bb", 0) is None
    assert tokens_of_answer([None], "aa", 0) is None
