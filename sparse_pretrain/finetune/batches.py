"""Encoded splits, batches of them, and predictions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.finetune.kinds.base import LENGTH, Array, TaskKind
from sparse_pretrain.finetune.ranks import Alone
from sparse_pretrain.training.world import World

Collate = Callable[[list[dict[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Split:
    """One split: `examples` checked and numbered, and `encoded`, a row a forward pass sees."""

    examples: Dataset
    encoded: Dataset


def encode(
    kind: TaskKind, tokenizer: PreTrainedTokenizerBase, splits: dict[str, Dataset], max_length: int
) -> dict[str, Split]:
    """Return every split with its tokens."""
    with quiet_libraries():
        return {
            name: Split(split, kind.encode(tokenizer, split, max_length)) for name, split in splits.items()
        }


def collator(kind: TaskKind, tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Return the function that pads a batch to its own longest row, as `Trainer` wants it."""
    return lambda rows: kind.collate(tokenizer, rows)


def by_length(lengths: list[int], batch_size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of like length, longest first (so that memory trouble shows at once)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextmanager
def own_forward(model: nn.Module) -> Iterator[None]:
    """Take off what a `Trainer` wraps around a model's forward: its autocast would win over the one wanted here."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


@torch.no_grad()
def predict(
    kind: TaskKind,
    model: nn.Module,
    encoded: Dataset,
    collate: Collate,
    batch_size: int,
    bf16: bool,
    world: World | None = None,
) -> list[tuple[Array, ...]]:
    """Run a model over an encoded split; the ranks of `world` share the batches (collective).

    Returns:
        for every row, in the split's order, the fp32 output of each head.
    """
    was_training = model.training
    model.eval()
    # A model of another engine (export.task_metric) has no parameters, and computes on the CPU.
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    outputs: dict[int, tuple[Array, ...]] = {}
    batches = list(by_length(encoded[LENGTH], batch_size))
    world = world or Alone()
    for turn in range(0, len(batches), world.size):
        # At ZeRO 3 a forward pass takes all ranks: who has no batch left computes the last one, too.
        rows = batches[min(turn + world.rank, len(batches) - 1)]
        inputs = kind.inputs(collate([encoded[row] for row in rows]))
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        with own_forward(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            heads = [head.cpu().numpy() for head in kind.outputs(model, inputs)]
        for place, row in enumerate(rows):
            outputs[row] = tuple(head[place] for head in heads)
    model.train(was_training)
    everything = {row: heads for part in world.gather(outputs) for row, heads in part.items()}
    return [everything[row] for row in range(len(encoded))]


def measure(
    kind: TaskKind,
    model: nn.Module,
    split: Split,
    collate: Collate,
    batch_size: int,
    bf16: bool,
    world: World | None = None,
) -> dict[str, float]:
    """Return the metrics of a model on a split; ranks share the work, and all of them get the result (collective)."""
    outputs = predict(kind, model, split.encoded, collate, batch_size, bf16, world)
    return kind.score(split.examples, split.encoded, outputs)
