"""One of several endings (SWAG): every ending is read with what stands before it, the best score wins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.finetune.kinds.base import (
    LENGTH,
    Answers,
    Array,
    Batch,
    Columns,
    TaskKind,
    number_of,
    pad,
    texts,
)


class Choice(TaskKind):
    """A context, optionally the beginning that all endings share, and the endings; the label is a number from 0."""

    factory = "AutoModelForMultipleChoice"
    has_classes = False

    def columns(self) -> dict[str, str]:
        """Return the columns of context, beginning, endings and label."""
        return {**super().columns(), **dict.fromkeys(self.task.choices, "choices")}

    def classes(self, where: str, train: Columns) -> tuple[str, ...]:
        """Return nothing: the places of endings have no names, and the model one output."""
        return ()

    def examples(self, where: str, split: str, columns: Columns, names: tuple[str, ...]) -> Dataset:
        """Return columns `text`, `endings` (a list) and `label`."""
        first = texts(where, self.task.text, columns)
        endings = [texts(where, column, columns) for column in self.task.choices]
        if self.task.text_pair is not None:
            begins = texts(where, self.task.text_pair, columns)
            endings = [
                [f"{begin} {end}" for begin, end in zip(begins, column, strict=True)] for column in endings
            ]
        numbers = tuple(str(number) for number in range(len(endings)))
        labels = [
            number_of(where, self.task.label, value, split, numbers) for value in columns[self.task.label]
        ]
        rows = [list(row) for row in zip(*endings, strict=True)]
        return Dataset.from_dict({"text": first, "endings": rows, "label": labels})

    def encode(self, tokenizer: PreTrainedTokenizerBase, examples: Dataset, max_length: int) -> Dataset:
        """Return, for each of the tokenizer's columns, a list with the tokens of every ending."""
        count = len(self.task.choices)

        def tokens_of(part: dict[str, list[Any]]) -> dict[str, Any]:
            tokens = tokenizer(
                [text for text in part["text"] for _ in range(count)],
                [ending for endings in part["endings"] for ending in endings],
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            rows = {
                name: [values[start : start + count] for start in range(0, len(values), count)]
                for name, values in tokens.items()
            }
            lengths = [max(map(len, endings)) for endings in rows["input_ids"]]
            return {**rows, "labels": part["label"], LENGTH: lengths}

        return examples.map(
            tokens_of, batched=True, remove_columns=examples.column_names, keep_in_memory=True
        )

    def collate(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]]) -> Batch:
        """Return a batch of [rows, endings, length]."""
        count = len(self.task.choices)
        names = [name for name in tokenizer.model_input_names if name in rows[0]]
        flat = [{name: row[name][place] for name in names} for row in rows for place in range(count)]
        batch = {name: tensor.view(len(rows), count, -1) for name, tensor in pad(tokenizer, flat).items()}
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    def outputs(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, ...]:
        """Return scores [rows, endings]."""
        return (model(**inputs).logits.float(),)

    def answers(self, outputs: tuple[Tensor, ...], batch: Batch) -> list[Answers]:
        """Return every example."""
        return [Answers(outputs[0], batch["labels"])]

    def score(
        self, examples: Dataset, encoded: Dataset, outputs: list[tuple[Array, ...]]
    ) -> dict[str, float]:
        """Return the share of right choices."""
        said = np.stack([output[0] for output in outputs]).argmax(axis=1)
        return {"accuracy": float((said == np.asarray(encoded["labels"])).mean())}
