"""Best-fit packing: every token once, rows at least 98 % full, few documents broken."""

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.best_fit import Apart, BestFitPacker, RunningText
from data_prep.documents import Document
from data_prep.packed_pairs import PairPacker
from data_prep.pairs import PairBuilder
from data_prep.recipe import PairsSection
from data_prep.rows import PackedRow, Row, RowBuilder
from data_prep.tokenizer import Template

START, END = 1, 2
TEMPLATE = Template((START,), (), (END,))


def documents_of(lengths: list[int]) -> list[Document]:
    """Documents whose tokens count up from 10, each token once."""
    ends = np.cumsum(lengths) + 10
    return [
        Document(number, size, np.arange(end - size, end, dtype=np.uint32), np.array([size]))
        for number, (size, end) in enumerate(zip(lengths, ends.tolist(), strict=True))
    ]


def pack(lengths: list[int], sequence_length: int, window: int) -> list[list[int]]:
    rows = rows_of(BestFitPacker(RunningText(TEMPLATE, END, sequence_length), window), lengths)
    return [row.tokens.tolist() for row in rows if isinstance(row, Row)]


def rows_of(packer: RowBuilder, lengths: list[int]) -> list[Row | PackedRow]:
    rows = [row for document in documents_of(lengths) for row in packer.add(document)]
    return [*rows, *packer.finish()]


def sequences_of(rows: list[Row | PackedRow]) -> list[list[Row]]:
    return [list(row.sequences) for row in rows if isinstance(row, PackedRow)]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(4, 40), st.integers(1, 3000))
@settings(max_examples=300, deadline=None)
def test_every_token_exactly_once_in_well_formed_rows(
    lengths: list[int], sequence_length: int, window: int
) -> None:
    rows = pack(lengths, sequence_length, window)
    text = [token for row in rows for token in row if token not in (START, END)]
    assert sorted(text) == list(range(10, 10 + sum(lengths)))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for row in rows:
        assert (row[0], row[-1], row.count(START)) == (START, END, 1)
        assert 3 <= len(row) <= sequence_length
        for left, right in pairwise(row[1:-1]):
            if END not in (left, right):
                assert right == left + 1
                assert owner[left - 10] == owner[right - 10], "no separator between two documents"
            assert (left, right) != (END, END)


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=60),
    st.integers(4, 40),
    st.integers(1, 3000),
    st.none() | st.integers(3, 40),
)
@settings(max_examples=200, deadline=None)
def test_documents_apart_hold_every_token_once_and_never_share_a_sequence(
    lengths: list[int], sequence_length: int, window: int, longest: int | None
) -> None:
    longest = longest and min(longest, sequence_length)
    packer = BestFitPacker(Apart(TEMPLATE, sequence_length, longest), window)
    rows = sequences_of(rows_of(packer, lengths))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    text = []
    for row in rows:
        assert 0 < sum(len(one.tokens) for one in row) <= sequence_length
        for one in row:
            start, *inside, end = one.tokens.tolist()
            assert (start, end) == (START, END)
            assert 1 <= len(inside) <= (longest or sequence_length) - 2
            assert inside == list(range(inside[0], inside[0] + len(inside)))
            assert len({owner[token - 10] for token in inside}) == 1
            text += inside
    assert sorted(text) == list(range(10, 10 + sum(lengths)))


@given(
    st.lists(st.integers(8, 90), min_size=1, max_size=40),
    st.integers(20, 60),
    st.integers(1, 2000),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_packed_pairs_are_the_pairs_each_once_and_whole(
    lengths: list[int], sequence_length: int, window: int, shorter: bool
) -> None:
    template = Template((START,), (END,), (END,))
    slots = 2 * sequence_length if shorter else sequence_length

    def pairs() -> PairBuilder:
        return PairBuilder(template, sequence_length, PairsSection(window_tokens=500), seed=1)

    expected = [row for row in rows_of(pairs(), lengths) if isinstance(row, Row)]
    rows = sequences_of(rows_of(PairPacker(pairs(), slots, window), lengths))
    found = [one for row in rows for one in row]
    assert all(sum(len(one.tokens) for one in row) <= slots for row in rows)

    def key(row: Row) -> tuple[list[int], int, int]:
        return row.tokens.tolist(), row.second_start, row.random_next

    assert sorted(map(key, found)) == sorted(map(key, expected))


SIZES: dict[str, Callable[[random.Random], int]] = {
    "short": lambda draw: draw.randrange(5, 60),
    "mixed": lambda draw: int(draw.lognormvariate(5, 1.2)) + 1,
    "just over half": lambda draw: draw.randrange(65, 75),
    "books": lambda draw: draw.randrange(2_000, 20_000),
}


def lengths_of(shape: str) -> list[int]:
    draw = random.Random(0)
    return [SIZES[shape](draw) for _ in range(30 if shape == "books" else 3000)]


@pytest.mark.parametrize("shape", SIZES)
def test_documents_apart_fill_at_least_98_percent(shape: str) -> None:
    rows = sequences_of(rows_of(BestFitPacker(Apart(TEMPLATE, 128, None), 100_000), lengths_of(shape)))
    assert sum(len(one.tokens) for row in rows for one in row) / (128 * len(rows)) >= 0.98


# Of pairs of much the same length, which cannot be broken, nothing fills a row.
@pytest.mark.parametrize("shape", ["short", "mixed", "books"])
def test_pairs_of_128_fill_rows_of_512_by_at_least_98_percent(shape: str) -> None:
    pairs = PairBuilder(Template((START,), (END,), (END,)), 128, PairsSection(), seed=1)
    rows = sequences_of(rows_of(PairPacker(pairs, 512, 4_000_000), lengths_of(shape)[:1000]))
    assert sum(len(one.tokens) for row in rows for one in row) / (512 * len(rows)) >= 0.98


@pytest.mark.parametrize("shape", SIZES)
def test_rows_are_at_least_98_percent_full_and_few_documents_broken(shape: str) -> None:
    lengths = lengths_of(shape)
    rows = pack(lengths, 128, 100_000)
    assert sum(map(len, rows)) / (128 * len(rows)) >= 0.98
    if shape == "short":
        ends = set((np.cumsum(lengths) + 9).tolist())
        whole = sum(left in ends for row in rows for left, right in pairwise(row[1:]) if right == END)
        assert whole >= 0.97 * len(lengths)
