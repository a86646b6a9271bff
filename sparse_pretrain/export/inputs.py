"""Inputs to compare a model's forms on: sentences where there are some, else random tokens of realistic lengths."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.task_model import usable_positions

Array = np.ndarray[Any, np.dtype[Any]]
Batch = dict[str, Array]
NAMES = ("input_ids", "attention_mask", "token_type_ids")
SHORTEST = 4
LONGEST = 128
CHOICES = 4


@dataclass(frozen=True)
class InputLayout:
    """What a model takes.

    Attributes:
        names: of its inputs, in order.
        choices: answers to choose from (a third axis, between batch and length); 0 where there is no such axis.
        positions: the longest input, in tokens.
    """

    names: tuple[str, ...]
    choices: int
    positions: int


def input_layout(model: PreTrainedModel) -> InputLayout:
    """Return what a model takes: segment numbers only if it tells segments apart."""
    config = model.config
    taken = inspect.signature(model.forward).parameters
    has_segments = getattr(config, "type_vocab_size", 0) > 1 and "token_type_ids" in taken
    choices = CHOICES if type(model).__name__.endswith("ForMultipleChoice") else 0
    return InputLayout(NAMES if has_segments else NAMES[:2], choices, usable_positions(config))


def read_sentences(path: Path) -> list[str]:
    """Return the lines of a UTF-8 text file that are not blank.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text ({error})") from None
    if not any(lines):
        raise UserError(f"{path}: has no sentence; write one a line")
    return [line for line in lines if line]


def random_rows(config: PretrainedConfig, count: int, positions: int, seed: int = 0) -> list[list[int]]:
    """Return `count` rows of random token ids, their lengths uniform between 4 and 128 (or what fits)."""
    generator = np.random.default_rng(seed)
    longest = min(LONGEST, positions)
    lengths = generator.integers(min(SHORTEST, longest), longest + 1, size=count)
    # Padding ids inside a row would shift RoBERTa's positions.
    ids = [number for number in range(config.vocab_size) if number != config.pad_token_id]
    return [generator.choice(ids, size=length).tolist() for length in lengths]


def sentence_rows(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], count: int, positions: int
) -> list[list[int]]:
    """Return the token ids of the first `count` sentences, cut to 128 tokens (or what fits)."""
    encoded = tokenizer(list(sentences[:count]), truncation=True, max_length=min(LONGEST, positions))
    return [list(row) for row in encoded["input_ids"]]


def batches(rows: Sequence[list[int]], layout: InputLayout, pad: int, size: int) -> list[Batch]:
    """Return the rows as padded batches of `size`; the last may be smaller.

    With segments, the second half of each row is segment 1; with choices, each row stands for all of them but the
    first token differs.
    """
    return [padded(rows[first : first + size], layout, pad) for first in range(0, len(rows), size)]


def padded(rows: Sequence[list[int]], layout: InputLayout, pad: int) -> Batch:
    """Return one batch: int64 [rows, length], or [rows, choices, length]."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    mask, segments = np.zeros_like(ids), np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        segments[row, len(tokens) // 2 : len(tokens)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    if layout.choices:
        batch = {name: np.repeat(array[:, None], layout.choices, axis=1) for name, array in batch.items()}
        # Else all choices score the same, and an error in their order would not show.
        batch["input_ids"][:, :, 0] = (batch["input_ids"][:, :, 0] + np.arange(layout.choices)) % (
            ids.max() + 1
        )
    return {name: batch[name] for name in layout.names}


def full_batch(layout: InputLayout, size: int, length: int, vocabulary: int, seed: int = 0) -> Batch:
    """Return a batch without padding, random tokens of the vocabulary's upper half, for timing."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(vocabulary // 2, vocabulary, size=(size, length)).tolist()
    return padded(rows, layout, 0)
