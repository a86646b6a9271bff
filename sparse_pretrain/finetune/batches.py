"""Tokens of a task's splits, padded batch by batch, and predictions on them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.finetune.forward import task_logits
from sparse_pretrain.finetune.recipe import TaskSection

# Matrix kernels like sizes in eights; a few padding tokens cost less than an odd size.
PAD_TO = 8
LENGTH = "length"
PAIR = "_pair"
Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


def encode(tokenizer: PreTrainedTokenizerBase, split: Dataset, task: TaskSection, max_length: int) -> Dataset:
    """Return tokens of each example, cut at `max_length`, with `labels` and `length`.

    Columns are the tokenizer's (`input_ids`, `token_type_ids`); those of a second sentence that is
    encoded separately end in `_pair`.
    """

    def tokens_of(part: dict[str, list[Any]]) -> dict[str, Any]:
        settings = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
        if task.pair_encoding == "separate":
            tokens = dict(tokenizer(part["text"], **settings))
            tokens |= {
                f"{name}{PAIR}": rows for name, rows in tokenizer(part["text_pair"], **settings).items()
            }
        else:
            sentences = (part["text"], part["text_pair"]) if task.text_pair else (part["text"],)
            tokens = dict(tokenizer(*sentences, **settings))
        second = tokens.get(f"input_ids{PAIR}") or tokens["input_ids"]
        lengths = [max(map(len, both)) for both in zip(tokens["input_ids"], second, strict=True)]
        return {**tokens, "labels": part["label"], LENGTH: lengths}

    with quiet_libraries():
        return split.map(tokens_of, batched=True, remove_columns=split.column_names, keep_in_memory=True)


def collator(tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Return the function that pads a batch to its own longest example, as `Trainer` wants it.

    Sentences encoded separately become rows of their own: all first ones, then all second ones.
    """
    # tokenizers are quicker at padding while they tokenize; here batches are drawn afterwards.
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        tokens = [{key: value for key, value in row.items() if key not in ("labels", LENGTH)} for row in rows]
        first = [{key: value for key, value in row.items() if not key.endswith(PAIR)} for row in tokens]
        second = [
            {key.removesuffix(PAIR): value for key, value in row.items() if key.endswith(PAIR)}
            for row in tokens
        ]
        features = first + [row for row in second if row]
        batch = dict(tokenizer.pad(features, pad_to_multiple_of=PAD_TO, return_tensors="pt"))
        labels = [row["labels"] for row in rows]
        # Scores come as float, class numbers as int: the loss follows the type.
        batch["labels"] = torch.tensor(
            labels, dtype=torch.float32 if isinstance(labels[0], float) else torch.long
        )
        return batch

    return collate


def by_length(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of like length, longest first (so that memory trouble shows at once)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    examples: Dataset,
    task: TaskSection,
    collate: Collate,
    batch_size: int,
    bf16: bool,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Run a model over an encoded split.

    Returns:
        logits [examples, classes or 1] in fp32 and labels [examples], both in the split's order.
    """
    was_training = model.training
    model.eval()
    width = 1 if task.kind == "regression" else model.config.num_labels or 1
    logits = np.zeros((len(examples), width), dtype=np.float32)
    for rows in by_length(examples[LENGTH], batch_size):
        batch = collate([examples[row] for row in rows])
        batch.pop("labels")
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = task_logits(model, inputs, task)
        logits[rows] = outputs.cpu().numpy()
    model.train(was_training)
    return logits, np.asarray(examples["labels"])
