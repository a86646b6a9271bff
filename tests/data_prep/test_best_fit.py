"""Best-fit packing: every token once, rows at least 98 % full, few documents broken."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.best_fit import BestFitPacker
from data_prep.documents import Document
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
    packer = BestFitPacker(TEMPLATE, END, sequence_length, window)
    rows = [row for document in documents_of(lengths) for row in packer.add(document)]
    return [row.tokens.tolist() for row in [*rows, *packer.finish()]]


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


@pytest.mark.parametrize("shape", ["short", "mixed", "just over half", "books"])
def test_rows_are_at_least_98_percent_full_and_few_documents_broken(shape: str) -> None:
    draw = random.Random(0)
    sizes = {
        "short": lambda: draw.randrange(5, 60),
        "mixed": lambda: int(draw.lognormvariate(5, 1.2)) + 1,
        "just over half": lambda: draw.randrange(65, 75),
        "books": lambda: draw.randrange(5_000, 50_000),
    }
    size = sizes[shape]
    lengths = [size() for _ in range(30 if shape == "books" else 3000)]
    rows = pack(lengths, 128, 100_000)
    assert sum(map(len, rows)) / (128 * len(rows)) >= 0.98
    if shape == "short":
        ends = set((np.cumsum(lengths) + 9).tolist())
        whole = sum(left in ends for row in rows for left, right in pairwise(row[1:]) if right == END)
        assert whole >= 0.97 * len(lengths)
