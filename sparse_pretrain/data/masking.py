"""Dynamic token masking, seeded per sample: the same sample in the same epoch is masked the same way
whatever rank, batch or process it lands in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.manifest import SpecialTokens
from sparse_pretrain.data.order import key_of, mix

IGNORED = -100
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenTable:
    """What masking knows of a vocabulary, all by token id.

    Attributes:
        mask: id of the mask token.
        special: bool [vocabulary], tokens never chosen and never drawn as random replacements.
        starts_word: bool [vocabulary], tokens that begin a word.
        ordinary: int64, the ids that random replacement draws from.
    """

    mask: int
    special: NDArray[np.bool_]
    starts_word: NDArray[np.bool_]
    ordinary: Tokens

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens, size: int) -> "TokenTable":
        """Read the table off a tokenizer; word starts follow its own marker (##, Ġ or ▁)."""
        special = np.zeros(size, dtype=bool)
        special[special_tokens.never_masked] = True
        tokens = list(tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer))))))
        starts = np.ones(size, dtype=bool)
        starts[: len(tokens)] = word_starts(tokens)
        return cls(special_tokens.mask, special, starts, np.flatnonzero(~special[: len(tokens)]))


def word_starts(tokens: list[str]) -> NDArray[np.bool_]:
    """Say of each token whether it begins a word: no ## in WordPiece; Ġ or ▁ in byte-level BPE, SentencePiece."""
    if any(token.startswith("##") for token in tokens):
        return np.array([not token.startswith("##") for token in tokens])
    if any(token.startswith(("Ġ", "▁")) for token in tokens):
        return np.array([token.startswith(("Ġ", "▁")) for token in tokens])
    return np.ones(len(tokens), dtype=bool)


def mask_tokens(
    tokens: Tokens, epochs: Tokens, samples: Tokens, seed: int, section: MaskingSection, table: TokenTable
) -> tuple[Tokens, Tokens]:
    """Choose tokens to predict and disguise them (80/10/10 by default; Devlin et al. 2019, section 3.1).

    Args:
        tokens: int64 [rows, length], padded; not changed.
        epochs: int64 [rows].
        samples: int64 [rows], indices in the split.
        seed: the run's seed.
        section: shares.
        table: the vocabulary.

    Returns:
        (inputs, labels), both int64 [rows, length]; labels are `IGNORED` where nothing is predicted.
    """
    row_keys = mix(
        mix(samples.astype(np.uint64) ^ np.uint64(key_of("mask", seed))) + epochs.astype(np.uint64)
    )
    units = word_numbers(tokens, table) if section.whole_word else np.arange(tokens.shape[1])[None, :]
    chosen = uniform(row_keys, units, draw=0) < section.probability
    chosen &= ~table.special[tokens]
    positions = np.arange(tokens.shape[1])[None, :]
    disguise = uniform(row_keys, positions, draw=1)
    by_mask = chosen & (disguise < section.replace_by_mask)
    by_random = chosen & ~by_mask & (disguise < section.replace_by_mask + section.replace_by_random)
    drawn = (uniform(row_keys, positions, draw=2) * len(table.ordinary)).astype(np.int64)
    inputs = np.where(by_mask, table.mask, np.where(by_random, table.ordinary[drawn], tokens))
    return inputs, np.where(chosen, tokens, IGNORED)


def word_numbers(tokens: Tokens, table: TokenTable) -> Tokens:
    """Number the words of each row: int64 [rows, length], equal inside a word."""
    return np.cumsum(table.starts_word[tokens] | table.special[tokens], axis=1)


def uniform(row_keys: NDArray[np.uint64], units: Tokens, draw: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) per (row, unit): equal units of a row get equal numbers."""
    counter = units.astype(np.uint64) * np.uint64(4) + np.uint64(draw)
    return (mix(row_keys[:, None] ^ mix(counter)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
