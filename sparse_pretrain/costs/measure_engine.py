"""Timings of what a real engine does by weight, not by token: gradients, optimizer step, masks."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, BertForMaskedLM

from sparse_pretrain.bench.mask_settings import MaskBenchSettings
from sparse_pretrain.bench.masks import build_pruner, random_batch
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.costs.clock import Stopwatch
from sparse_pretrain.costs.counts import Pass, Shape, mask_update, masks, micro_batch, optimizer
from sparse_pretrain.costs.fit import Sample, fit
from sparse_pretrain.costs.hardware import KernelCost
from sparse_pretrain.costs.time import kernel_seconds
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.distillation.losses import masked_language_loss
from sparse_pretrain.models.loading import attention_of
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.engine import Engine
from sparse_pretrain.training.precision import DTYPES, Resolved

# Few tokens, so that what is left is by weight.
ROWS, LENGTH = 1, 16
STEPS = 6
# Width, layers and vocabulary: of the same weights more are embeddings in one than in the other.
SHAPES = ((256, 4, 30522), (384, 6, 30522), (512, 4, 4096))
HEAD_WIDTH = 64
UPDATES = (0, 10**6)


def measure_engine(
    device: torch.device, precision: Resolved, kernels: Mapping[str, KernelCost]
) -> dict[str, KernelCost]:
    """Step real engines with few tokens, alone in the world, and return the constants of what goes by weight.

    Args:
        device: where.
        precision: of the working copy.
        kernels: constants of kernels that go by token: their share is taken out.
    """
    samples: dict[str, list[Sample]] = {}
    for width, layers, vocabulary in SHAPES:
        engine, shape, pruner = build(precision, width, layers, vocabulary)
        settings = MaskBenchSettings(rows=ROWS, length=LENGTH)
        batch = clipped(random_batch_on(settings, device, vocabulary), vocabulary)
        times: dict[str, list[float]] = {}
        for number in range(STEPS):
            backward_seconds = timed(device, partial(forward_and_backward, engine, batch))
            before = timed(device, pruner.before_step)
            step = timed(device, engine.step)
            update = number if number in range(len(UPDATES)) else None
            after = timed(device, partial(pruner.after_step, UPDATES[update] if update is not None else 1))
            if number >= len(UPDATES):
                for name, value in (
                    ("gradient", backward_seconds),
                    ("optimizer", step),
                    ("before", before),
                    ("after", after),
                ):
                    times.setdefault(name, []).append(value)
            else:
                times.setdefault("update", []).append(after)
        found = {name: statistics.median(values) for name, values in times.items()}
        add_samples(samples, found, shape, DTYPES[precision].itemsize, len(batch.positions), kernels)
    return {kernel: fit(taken) for kernel, taken in samples.items()}


def add_samples(
    samples: dict[str, list[Sample]],
    seconds: Mapping[str, float],
    shape: Shape,
    width: int,
    positions: int,
    kernels: Mapping[str, KernelCost],
) -> None:
    """Sort one engine's times by kernel, less what tokens cost and, of an update, what every step does."""
    *tokens, gradient = micro_batch(shape, Pass(ROWS, LENGTH, positions, positions), width)
    by_token = sum(kernel_seconds(work, kernels[work.kernel]) for work in tokens if work.kernel in kernels)
    samples.setdefault("gradient", []).append(Sample(gradient, max(1e-6, seconds["gradient"] - by_token)))
    samples.setdefault("optimizer", []).append(Sample(optimizer(shape, 1, width)[0], seconds["optimizer"]))
    before, after = masks(shape, 1, width, stage=2)
    samples.setdefault("mask gradients", []).append(Sample(before, seconds["before"]))
    samples.setdefault("mask working", []).append(Sample(after, seconds["after"]))
    update, replace = mask_update(shape, 1)
    # Of an update half goes by what a rank owns, half by the whole masks: an assumption, they were not told apart.
    half = max(1e-6, (seconds["update"] - seconds["after"]) / 2)
    samples.setdefault("mask update", []).append(Sample(update, half))
    samples.setdefault("mask replace", []).append(Sample(replace, half))


def build(precision: Resolved, width: int, layers: int, vocabulary: int) -> tuple[Engine, Shape, Pruner]:
    """Build a BERT with random weights under DeepSpeed, and masks for it."""
    values: dict[str, Any] = {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
    }
    recipe = TrainRecipe.model_validate(
        {
            "output": "measure",
            "steps": 1,
            "model": {"config": values},
            "data": {"path": "measure"},
            "batch": {"global_size": ROWS, "micro_size": ROWS},
        }
    )
    config = AutoConfig.for_model(**values, attn_implementation=attention_of(recipe.model))
    model = BertForMaskedLM(config)  # type: ignore[arg-type]
    weights = dict(model.named_parameters())
    prunable = {name: weight.shape for name, weight in prunable_weights(model).items()}
    shape = Shape.of(
        config,
        sum(weight.numel() for weight in weights.values()),
        len(weights),
        sum(size.numel() for size in prunable.values()),
        len(prunable),
    )
    engine = Engine(PretrainingModel(model), recipe.optimizer, deepspeed_config(recipe, precision, 1))
    return (
        engine,
        shape,
        build_pruner(engine, prunable, MaskBenchSettings(allocation="uniform"), packed=False),
    )


def random_batch_on(settings: MaskBenchSettings, device: torch.device, vocabulary: int) -> Batch:
    """Return one micro-batch of random tokens."""
    from sparse_pretrain.training.world import World

    return random_batch(settings, World(0, 1, 0, device))


def clipped(batch: Batch, vocabulary: int) -> Batch:
    """Return the batch with tokens of a smaller vocabulary."""
    batch.input_ids.remainder_(vocabulary)
    batch.labels.remainder_(vocabulary)
    return batch


def forward_and_backward(engine: Engine, batch: Batch) -> None:
    """Do what comes before the optimizer step."""
    predictions = engine(batch)
    engine.backward(masked_language_loss(predictions.tokens, batch.labels) / batch.counts.predicted)


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Time work once."""
    watch = Stopwatch(device)
    work()
    return watch.seconds()
