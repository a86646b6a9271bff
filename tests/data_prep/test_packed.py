"""Packing: every token once, rows full, documents kept apart."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packed import Packer
from data_prep.tokenizer import Template
from tests.data_prep.corpus import numbered

START, END = 1, 2
TEMPLATE = Template((START,), (), (END,))
DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=8), min_size=1, max_size=12)


def pack(lengths: list[list[int]], sequence_length: int, whole_sentences: bool = False) -> list[list[int]]:
    packer = Packer(TEMPLATE, END, sequence_length, whole_sentences)
    rows = [row for document in numbered(lengths) for row in packer.add(document)]
    return [row.tokens.tolist() for row in [*rows, *packer.finish()]]


@given(DOCUMENTS, st.integers(3, 40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_token_exactly_once_and_in_order(
    lengths: list[list[int]], sequence_length: int, whole_sentences: bool
) -> None:
    rows = pack(lengths, sequence_length, whole_sentences)
    text = [token for row in rows for token in row if token not in (START, END)]
    assert text == np.concatenate([document.tokens for document in numbered(lengths)]).tolist()


@given(DOCUMENTS, st.integers(3, 40), st.booleans())
@settings(max_examples=200, deadline=None)
def test_rows_are_well_formed(lengths: list[list[int]], sequence_length: int, whole_sentences: bool) -> None:
    documents = numbered(lengths)
    owner = {int(token): number for number, one in enumerate(documents) for token in one.tokens}
    for row in pack(lengths, sequence_length, whole_sentences):
        assert (row[0], row[-1], row.count(START)) == (START, END, 1)
        assert 3 <= len(row) <= sequence_length
        inside = row[1:-1]
        assert inside[0] != END
        assert inside[-1] != END
        for left, right in pairwise(inside):
            if END not in (left, right):
                assert owner[left] == owner[right], "no separator between two documents"
            assert (left, right) != (END, END)


@given(DOCUMENTS, st.integers(3, 40))
@settings(deadline=None)
def test_at_most_one_slot_of_a_row_stays_empty(lengths: list[list[int]], sequence_length: int) -> None:
    """One, where a separator would have been the row's last token; the last row may be short."""
    assert all(len(row) >= sequence_length - 1 for row in pack(lengths, sequence_length)[:-1])


@given(DOCUMENTS, st.integers(12, 40))
@settings(deadline=None)
def test_whole_sentences_are_broken_only_when_longer_than_a_row(
    lengths: list[list[int]], sequence_length: int
) -> None:
    rows = pack(lengths, sequence_length, whole_sentences=True)
    row_of = {token: number for number, row in enumerate(rows) for token in row}
    for document in numbered(lengths):
        for sentence in document.sentences():
            touched = {row_of[int(token)] for token in sentence}
            assert len(touched) == 1 or len(sentence) > sequence_length - 2


@pytest.mark.parametrize("whole_sentences", [False, True])
def test_by_hand(whole_sentences: bool) -> None:
    rows = pack([[2, 3], [2, 4]], 8, whole_sentences)
    assert rows == [[1, 10, 11, 12, 13, 14, 2], [1, 15, 16, 17, 18, 19, 20, 2]]
    if whole_sentences:
        assert pack([[2, 2], [3]], 8, True) == [[1, 10, 11, 12, 13, 2], [1, 14, 15, 16, 2]]
    else:
        assert pack([[2, 2], [3]], 8) == [[1, 10, 11, 12, 13, 2, 14, 2], [1, 15, 16, 2]]
