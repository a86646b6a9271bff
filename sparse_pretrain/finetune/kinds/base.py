"""What a kind of task has to know; everything else (training, distillation, masks, files) is common to all."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.recipe import TaskSection

Columns = dict[str, list[Any]]
Batch = dict[str, Tensor]
Array = np.ndarray[Any, Any]
LENGTH = "length"
# Matrix kernels like sizes in eights; a few padding tokens cost less than an odd size.
PAD_TO = 8
# Label of what is not scored, as torch's cross-entropy has it.
IGNORED = -100
# Logit of what cannot be chosen: its probability is exactly zero in fp32, and no difference of two is NaN.
NEVER = -1e4


@dataclass(frozen=True)
class Answers:
    """What one head said, and what was right.

    Attributes:
        logits: fp32 [rows, classes]; [rows, 1] for a score.
        labels: int64 [rows], or float [rows] for a score.
    """

    logits: Tensor
    labels: Tensor


class TaskKind(ABC):
    """One kind of task; an object of it knows the recipe's section."""

    # Name of the `transformers` factory (AutoModelFor…), and of the batch's tensors that are no model inputs.
    factory: str
    label_names: tuple[str, ...] = ("labels",)
    has_classes = True

    def __init__(self, task: TaskSection) -> None:
        """Serve `task`."""
        self.task = task

    def columns(self) -> dict[str, str]:
        """Return the columns that are needed, with the recipe key that names each."""
        wanted = {self.task.text: "text", self.task.label: "label"}
        if self.task.text_pair is not None:
            wanted[self.task.text_pair] = "text_pair"
        return wanted

    @abstractmethod
    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return the names of the classes that the training data have; none for a kind without classes.

        Raises:
            UserError: what is there are no classes.
        """

    @abstractmethod
    def examples(self, where: str, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
        """Return a split checked, its texts under names of our own and its labels as numbers.

        Raises:
            UserError: naming file, column and value of what is wrong.
        """

    @abstractmethod
    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int) -> Dataset:
        """Return the model's inputs and labels, a row a forward pass sees, with their `length` in tokens."""

    @abstractmethod
    def collate(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return encoded rows as tensors, padded to the longest of them."""

    @abstractmethod
    def outputs(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, ...]:
        """Run the model; return the fp32 output of each head, first dimension that of the rows."""

    @abstractmethod
    def answers(self, outputs: tuple[Tensor, ...], batch: Batch) -> list[Answers]:
        """Return, for each head, the rows that count, with their labels."""

    @abstractmethod
    def score(
        self, examples: Dataset, encoded: Dataset, outputs: list[tuple[Array, ...]]
    ) -> dict[str, float]:
        """Return the metrics of a split.

        Args:
            examples: the split as `examples` returned it.
            encoded: as `encode` returned it.
            outputs: of every encoded row, in order, each head's output without the first dimension; what is
                behind the row's own length is padding.
        """

    def inputs(self, batch: Batch) -> Batch:
        """Return what the model gets of a batch."""
        return {name: tensor for name, tensor in batch.items() if name not in self.label_names}


def pad(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
    """Return the tokenizer's own columns of rows as tensors, padded to the longest; other columns are left out."""
    names = {"input_ids", *tokenizer.model_input_names} - {"attention_mask"}
    # tokenizers are quicker at padding while they tokenize; here batches are drawn afterwards.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    features = [{name: value for name, value in row.items() if name in names} for row in rows]
    return dict(tokenizer.pad(features, pad_to_multiple_of=PAD_TO, return_tensors="pt"))


def pad_labels(rows: Sequence[list[int]], length: int) -> Tensor:
    """Return rows of labels as int64 [rows, length], `IGNORED` behind the end of each."""
    padded = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded


def texts(where: str, column: str, columns: Columns) -> list[str]:
    """Return a text column, refusing values that are no text, and a column without any text.

    Raises:
        UserError: naming the column and the first such value.
    """
    values = columns[column]
    for value in values:
        if not isinstance(value, str):
            raise UserError(f"{where}: column {column!r}: {value!r} is no text")
    if not any(value.strip() for value in values):
        raise UserError(f"{where}: column {column!r}: every text is empty")
    return values


def number_of(where: str, column: str, value: Any, split: str, names: tuple[str, ...]) -> int:
    """Return the number of a class.

    Raises:
        UserError: no such class.
    """
    try:
        return names.index(str(value))
    except ValueError:
        known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise UserError(
            f"{where}: column {column!r}: {value!r} in the {split} data is not among the classes: {known}"
        ) from None


def sorted_classes(found: set[str]) -> tuple[str, ...]:
    """Return class names, numbers by size, other names by alphabet."""
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))
