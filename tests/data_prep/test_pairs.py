"""Segment pairs: labels are true, lengths fit, draws depend on seed and text alone."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.documents import Document
from data_prep.pairs import PairBuilder, sentence_cuts
from data_prep.recipe import PairsSection
from data_prep.rows import Row
from data_prep.tokenizer import Template
from tests.data_prep.corpus import numbered

BERT = Template((1,), (2,), (2,))
ROBERTA = Template((1,), (2, 2), (2,))
LENGTHS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=15), min_size=1, max_size=8)


def pair_up(
    documents: list[Document], length: int = 32, template: Template = BERT, seed: int = 0, **settings: Any
) -> list[Row]:
    builder = PairBuilder(template, length, PairsSection(**settings), seed)
    return [row for document in documents for row in builder.add(document)] + list(builder.finish())


def segments(row: Row, template: Template = BERT) -> tuple[list[int], list[int]]:
    tokens = row.tokens.tolist()
    first = tokens[len(template.prefix) : row.second_start - len(template.middle)]
    return first, tokens[row.second_start : -len(template.suffix)]


@pytest.mark.parametrize("template", [BERT, ROBERTA])
@given(
    lengths=LENGTHS, length=st.integers(6, 64), seed=st.integers(0, 5), short=st.sampled_from([0.0, 0.5, 1.0])
)
@settings(max_examples=150, deadline=None)
def test_labels_are_true_and_lengths_fit(
    template: Template, lengths: list[list[int]], length: int, seed: int, short: float
) -> None:
    documents = numbered(lengths)
    owner = {int(token): number for number, one in enumerate(documents) for token in one.tokens}
    for row in pair_up(documents, length, template, seed, short_sequence_probability=short):
        first, second = segments(row, template)
        tokens = row.tokens.tolist()
        assert len(tokens) <= length
        assert len(first) >= 1
        assert len(second) >= 1
        assert tuple(tokens[: len(template.prefix)]) == template.prefix
        assert tuple(tokens[row.second_start - len(template.middle) : row.second_start]) == template.middle
        assert tuple(tokens[-len(template.suffix) :]) == template.suffix
        for segment in (first, second):
            assert all(right == left + 1 for left, right in pairwise(segment)), "a stretch of running text"
            assert len({owner[token] for token in segment}) == 1
        if row.random_next:
            assert owner[first[0]] != owner[second[0]]
        else:
            assert owner[first[0]] == owner[second[0]]
            assert second[0] > first[-1]


def test_a_true_second_segment_starts_where_the_first_ends() -> None:
    """Sentences of 5 in rows with room to spare: nothing is truncated, so there is no gap."""
    documents = numbered([[5] * 20] * 4)
    rows = pair_up(documents, 48, short_sequence_probability=0.0)
    true = [segments(row) for row in rows if not row.random_next]
    assert len(true) > 5
    assert all(second[0] == first[-1] + 1 for first, second in true)


def test_no_text_is_lost_when_the_second_segment_is_foreign() -> None:
    """Unread sentences are read again. Ten sentences of 6 fill a row exactly: nothing is truncated."""
    documents = numbered([[6] * 12] * 5)
    rows = pair_up(documents, 63, short_sequence_probability=0.0)
    own: list[int] = []
    for row in rows:
        first, second = segments(row)
        own += first + ([] if row.random_next else second)
    assert sorted(own) == np.concatenate([one.tokens for one in documents]).tolist()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_share_of_random_next(probability: float) -> None:
    documents = numbered([[4] * 60] * 40)
    rows = pair_up(documents, 35, short_sequence_probability=0.0, random_next_probability=probability)
    share = np.mean([row.random_next for row in rows])
    # Chunks that hold one last sentence are random whatever the probability says: few of them here.
    assert abs(share - probability) < 0.08


def test_short_sequences() -> None:
    documents = numbered([[2] * 100] * 10)
    always = pair_up(documents, 64, short_sequence_probability=1.0)
    never = pair_up(documents, 64, short_sequence_probability=0.0)
    assert np.mean([len(row.tokens) for row in never]) > 1.3 * np.mean([len(row.tokens) for row in always])


def test_long_sentences_are_cut_rather_than_truncated() -> None:
    (document,) = numbered([[3, 25, 4]])
    assert sentence_cuts(document, longest=10) == [0, 3, 11, 19, 28, 32]


def test_a_lone_document_gets_true_pairs_only() -> None:
    rows = pair_up(numbered([[5, 9, 2, 7]]), 16)
    assert rows
    assert not any(row.random_next for row in rows)
    ((first, second),) = (segments(row) for row in pair_up(numbered([[5]]), 16))
    assert (first, second) == ([10, 11], [12, 13, 14])


def test_foreign_segments_come_from_this_window_or_the_one_before() -> None:
    """Windows of three documents: memory does not grow with the corpus, and the last window has company."""
    documents = numbered([[10]] * 10)
    rows = pair_up(documents, 32, window_tokens=30)
    assert len(rows) == 10
    for row in rows:
        first, second = segments(row)
        own, other = (first[0] - 10) // 10 // 3, (second[0] - 10) // 10 // 3
        assert own - other in (0, 1)
        assert row.random_next


def test_draws_depend_on_seed_and_text_only() -> None:
    documents = numbered([[5] * 10] * 6)
    same = [row.tokens.tolist() for row in pair_up(documents, seed=1)]
    assert same == [row.tokens.tolist() for row in pair_up(documents, seed=1)]
    assert same != [row.tokens.tolist() for row in pair_up(documents, seed=2)]
    # Where a document's first segments end does not depend on what stands around it.
    alone = pair_up([documents[3], documents[5]], seed=1, random_next_probability=1.0)
    together = pair_up(documents, seed=1, random_next_probability=1.0)
    mine = set(documents[3].tokens.tolist())

    def firsts(rows: list[Row]) -> list[list[int]]:
        return [segments(row)[0] for row in rows if segments(row)[0][0] in mine]

    assert firsts(alone)[0][0] == firsts(together)[0][0]
