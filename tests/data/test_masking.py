"""Dynamic masking: shares, seeds, whole words, special tokens."""

import numpy as np
import pytest

from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.manifest import SpecialTokens
from sparse_pretrain.data.masking import IGNORED, TokenTable, mask_tokens, word_numbers, word_starts
from tests.tiny import PIECES, SPECIALS, VOCABULARY, WORDS, tiny_tokenizer

SPECIAL = SpecialTokens(pad=0, mask=4, cls=2, sep=3, never_masked=[0, 1, 2, 3, 4])


@pytest.fixture
def table() -> TokenTable:
    return TokenTable.of(tiny_tokenizer(), SPECIAL, len(VOCABULARY))


def rows(count: int = 200, length: int = 128) -> np.ndarray:
    generator = np.random.default_rng(0)
    tokens = generator.integers(len(SPECIALS), len(VOCABULARY), (count, length))
    tokens[:, 0], tokens[:, -1] = 2, 3
    return tokens


def masked(
    tokens: np.ndarray, table: TokenTable, epoch: int = 0, seed: int = 1, **section: object
) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.arange(len(tokens))
    settings = MaskingSection.model_validate(section)
    return mask_tokens(tokens, np.full_like(numbers, epoch), numbers, seed, settings, table)


def test_shares_are_15_percent_and_80_10_10(table: TokenTable) -> None:
    tokens = rows()
    inputs, labels = masked(tokens, table)
    chosen = labels != IGNORED
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.007)
    assert (inputs[chosen] == 4).mean() == pytest.approx(0.8, abs=0.02)
    # A random token equals the true one once in 60 draws.
    assert (inputs[chosen] == tokens[chosen]).mean() == pytest.approx(0.1 + 0.1 / 60, abs=0.02)
    assert (inputs[~chosen] == tokens[~chosen]).all()
    assert (labels[chosen] == tokens[chosen]).all()


def test_special_tokens_are_never_chosen_nor_drawn(table: TokenTable) -> None:
    inputs, labels = masked(rows(), table, probability=0.99, replace_by_mask=0.0, replace_by_random=1.0)
    assert (labels[:, [0, -1]] == IGNORED).all()
    assert inputs[:, 1:-1].min() >= len(SPECIALS)


def test_depends_on_sample_epoch_and_seed_only(table: TokenTable) -> None:
    tokens = rows()
    inputs, labels = masked(tokens, table)
    numbers = np.array([17, 3])
    alone = mask_tokens(tokens[numbers], np.zeros(2, np.int64), numbers, 1, MaskingSection(), table)
    assert (alone[0] == inputs[numbers]).all()
    assert (alone[1] == labels[numbers]).all()
    assert (masked(tokens, table, epoch=1)[1] != labels).any()
    assert (masked(tokens, table, seed=2)[1] != labels).any()


def test_whole_words_are_chosen_together(table: TokenTable) -> None:
    tokens = rows()
    _, labels = masked(tokens, table, whole_word=True)
    words = word_numbers(tokens, table)
    for row in range(len(tokens)):
        for word in np.unique(words[row]):
            inside = (words[row] == word) & ~table.special[tokens[row]]
            assert len(set((labels[row, inside] != IGNORED).tolist())) <= 1
    assert (labels != IGNORED).mean() == pytest.approx(0.15, abs=0.01)


def test_word_starts_of_three_tokenizer_families() -> None:
    assert word_starts(["[CLS]", "play", "##ing"]).tolist() == [True, True, False]
    assert word_starts(["<s>", "Ġplay", "ing"]).tolist() == [False, True, False]
    assert word_starts(["▁play", "ing"]).tolist() == [True, False]
    assert table_of_words()[len(SPECIALS) : len(SPECIALS) + len(WORDS)].all()


def table_of_words() -> np.ndarray:
    starts = word_starts(VOCABULARY)
    assert not starts[-len(PIECES) :].any()
    return starts
