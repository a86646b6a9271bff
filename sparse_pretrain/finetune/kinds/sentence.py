"""A class or a score for a sentence or a pair of sentences."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.kinds.base import (
    LENGTH,
    Answers,
    Array,
    Batch,
    Columns,
    TaskKind,
    number_of,
    pad,
    sorted_classes,
    texts,
)
from sparse_pretrain.finetune.metrics import score_predictions

# With more classes than this per row, a label column is a score or an identifier, not a class.
MOST_CLASSES_PER_ROW = 0.5
FEW_ROWS = 20
# Ending of the columns of a second sentence that is encoded by itself.
PAIR = "_pair"


class Sentence(TaskKind):
    """What classification and regression have in common: one row of tokens and one label an example."""

    def examples(self, where: str, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
        """Return columns `text`, `text_pair` (tasks on pairs) and `label`."""
        result = {"text": texts(where, self.task.text, columns)}
        if self.task.text_pair is not None:
            result["text_pair"] = texts(where, self.task.text_pair, columns)
        labels = [self.number(where, split, value, names) for value in columns[self.task.label]]
        return Dataset.from_dict({**result, "label": labels})

    def number(self, where: str, split: str, value: Any, names: tuple[str, ...]) -> float:
        """Return a label as a number."""
        raise NotImplementedError

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int) -> Dataset:
        """Return tokens cut at `max_length`; those of a sentence that is encoded separately end in `_pair`."""

        def tokens_of(part: dict[str, list[Any]]) -> dict[str, Any]:
            settings = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
            if self.task.pair_encoding == "separate":
                tokens = dict(tokenizer(part["text"], **settings))
                second = tokenizer(part["text_pair"], **settings)
                tokens |= {f"{name}{PAIR}": rows for name, rows in second.items()}
            else:
                sentences = (part["text"], part["text_pair"]) if self.task.text_pair else (part["text"],)
                tokens = dict(tokenizer(*sentences, **settings))
            longest = tokens.get(f"input_ids{PAIR}") or tokens["input_ids"]
            lengths = [max(map(len, both)) for both in zip(tokens["input_ids"], longest, strict=True)]
            return {**tokens, "labels": part["label"], LENGTH: lengths}

        return examples.map(
            tokens_of, batched=True, remove_columns=examples.column_names, keep_in_memory=True
        )

    def collate(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return a batch; sentences encoded separately are rows of their own: all first ones, then all second."""
        second = [
            {key.removesuffix(PAIR): value for key, value in row.items() if key.endswith(PAIR)}
            for row in rows
        ]
        batch = pad(tokenizer, [*rows, *(row for row in second if row)])
        labels = [row["labels"] for row in rows]
        # Scores come as float, class numbers as int: the loss follows the type.
        dtype = torch.float32 if isinstance(labels[0], float) else torch.long
        return {**batch, "labels": torch.tensor(labels, dtype=dtype)}

    def outputs(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, ...]:
        """Return logits [examples, classes], or scores [examples, 1].

        Pairs that are encoded separately come as 2 n rows, first sentences before second ones, to a bare
        encoder; their score is the cosine of the two mean token vectors (Reimers & Gurevych 2019).
        """
        if self.task.pair_encoding == "joint":
            return (model(**inputs).logits.float(),)
        hidden = model(**inputs).last_hidden_state.float()
        real = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        means = (hidden * real).sum(dim=1) / real.sum(dim=1)
        first, second = means.chunk(2)
        return (torch.cosine_similarity(first, second, dim=-1).unsqueeze(-1),)

    def answers(self, outputs: tuple[Tensor, ...], batch: Batch) -> list[Answers]:
        """Return every example."""
        return [Answers(outputs[0], batch["labels"])]

    def score(
        self, examples: Dataset, encoded: Dataset, outputs: list[tuple[Array, ...]]
    ) -> dict[str, float]:
        """Return the metrics of `finetune.metrics`."""
        logits = np.stack([output[0] for output in outputs])
        return score_predictions(self.task, logits, np.asarray(encoded["labels"]))


class Classification(Sentence):
    """One of several classes for a sentence or a pair."""

    factory = "AutoModelForSequenceClassification"

    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return the values of the label column."""
        where = f"{where}: column {self.task.label!r}"
        values = train[self.task.label]
        found = {str(value) for value in values if value is not None}
        if len(found) < 2:
            raise UserError(
                f"{where}: only {sorted(found)} occurs; a classification needs two classes or more"
            )
        if len(values) > FEW_ROWS and len(found) > len(values) * MOST_CLASSES_PER_ROW:
            raise UserError(
                f"{where}: {len(found)} different values in {len(values)} rows are no classes; "
                "set task.kind = regression or name another column"
            )
        return sorted_classes(found)

    def number(self, where: str, split: str, value: Any, names: tuple[str, ...]) -> int:
        """Return the class's number."""
        return number_of(where, self.task.label, value, split, names)


class Regression(Sentence):
    """A score for a sentence or a pair."""

    has_classes = False

    @property
    def factory(self) -> str:  # type: ignore[override]
        """Return what loads the model: a bare encoder where sentences are encoded separately."""
        separate = self.task.pair_encoding == "separate"
        return "AutoModel" if separate else "AutoModelForSequenceClassification"

    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return nothing: scores have no classes."""
        return ()

    def number(self, where: str, split: str, value: Any, names: tuple[str, ...]) -> float:
        """Return the score, divided by the task's scale."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{where}: column {self.task.label!r}: {value!r} is no number; a regression needs one in every row"
            )
        return number / self.task.label_scale
