"""What pruning costs: mask updates against `torch.kthvalue`, masked steps against plain ones, bytes a weight."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, BertForMaskedLM

from sparse_pretrain.bench.clock import timed
from sparse_pretrain.bench.mask_settings import SHAPES, MaskBenchSettings
from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.distillation.losses import masked_language_loss
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.processor import processor_name
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.scorers.magnitude import Magnitude
from sparse_pretrain.pruning.structures.element import Element
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.engine import Engine
from sparse_pretrain.training.precision import resolve_precision
from sparse_pretrain.training.world import World

# Steps at which the benchmark's schedule draws masks: far apart, so that all others are ordinary.
UPDATE_EVERY = 10**6
SPARSITY = 0.85


def measure(world: World, settings: MaskBenchSettings) -> dict[str, Any]:
    """Measure on all ranks together; every rank gets the same numbers.

    Returns:
        `update_ratio`: seconds of one mask update over those of `torch.kthvalue` on the magnitudes of
        this rank's share of the same weights. `step_overhead`: seconds of a step's mask work over
        those of a step without. `pruned_step_ratio`: a step with pruning over one without, taken in turns.
        `bytes_per_weight`: memory of the masks. The last three also for packed masks.
    """
    engine, names = build_engine(world, settings)
    batch = random_batch(settings, world)
    plain = build_pruner(engine, names, settings, packed=False)
    updates = [seconds(world, partial(plain.after_step, step)) for step in update_steps(settings)]
    kthvalue = [seconds(world, lambda: kthvalue_pass(engine, names)) for _ in range(settings.updates)]
    steps = step_times(engine, batch, world, plain, settings.steps)
    packed = build_pruner(engine, names, settings, packed=True)
    packed.after_step(0)
    packed_steps = step_times(engine, batch, world, packed, settings.steps)
    weights = sum(shape.numel() for shape in names.values())
    return {
        "update_ratio": median(updates) / median(kthvalue),
        "step_overhead": median(steps["masks"]) / median(steps["without"]),
        "pruned_step_ratio": median(steps["with"]) / median(steps["without"]),
        "bytes_per_weight": plain.masks.memory / weights,
        "packed_step_overhead": median(packed_steps["masks"]) / median(packed_steps["without"]),
        "packed_pruned_step_ratio": median(packed_steps["with"]) / median(packed_steps["without"]),
        "packed_bytes_per_weight": packed.masks.memory / weights,
        "update_seconds": median(updates),
        "kthvalue_seconds": median(kthvalue),
        "step_seconds": median(steps["without"]),
        "mask_seconds_per_step": median(steps["masks"]),
        "packed_mask_seconds_per_step": median(packed_steps["masks"]),
        "prunable_weights": weights,
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "device": device_name(world.device),
        "precision": resolve_precision("auto"),
        **settings.model_dump(),
    }


def build_engine(world: World, settings: MaskBenchSettings) -> tuple[Engine, dict[str, torch.Size]]:
    """Build a BERT of the wanted size with random weights under DeepSpeed; also its prunable weights."""
    precision = resolve_precision("auto")
    recipe = TrainRecipe.model_validate(
        {
            "output": "bench",
            "steps": 1,
            "model": {"config": {"model_type": "bert"}},
            "data": {"path": "bench"},
            "batch": {"global_size": settings.rows * world.size, "micro_size": settings.rows},
            "engine": {"stage": settings.stage},
        }
    )
    torch.manual_seed(0)
    attention = "eager" if world.device.type == "cpu" else "sdpa"
    config = AutoConfig.for_model("bert", attn_implementation=attention, **SHAPES[settings.model])
    model = BertForMaskedLM(config)  # type: ignore[arg-type]
    names = {name: weight.shape for name, weight in prunable_weights(model).items()}
    engine = Engine(
        PretrainingModel(model), recipe.optimizer, deepspeed_config(recipe, precision, world.size)
    )
    return engine, names


def build_pruner(
    engine: Engine, names: dict[str, torch.Size], settings: MaskBenchSettings, packed: bool
) -> Pruner:
    """Build a pruner that stays before its freeze, where steps cost most."""
    section = PruningSection.model_validate(
        {
            "target_sparsity": SPARSITY,
            "schedule": "constant",
            "end": 1000 * UPDATE_EVERY,
            "frequency": UPDATE_EVERY,
            "allocation": {"kind": settings.allocation},
            "masks": {"packed": packed},
        }
    )
    return Pruner(section, names, engine, Element(), Magnitude(), 0.01)


def update_steps(settings: MaskBenchSettings) -> list[int]:
    """Return the steps at which masks are drawn; the first update also warms up."""
    return [number * UPDATE_EVERY for number in range(settings.updates + 1)]


def kthvalue_pass(engine: Engine, names: dict[str, torch.Size]) -> None:
    """Find the threshold of every weight's part on this rank with torch, and nothing else."""
    for name in names:
        part = engine.part(name)
        if part is not None:
            length = part.master.numel()
            part.master.abs().kthvalue(max(1, round(SPARSITY * length)))


def step_times(
    engine: Engine, batch: Batch, world: World, pruner: Pruner, count: int
) -> dict[str, list[float]]:
    """Take steps without and with masks in turns; `masks` is what pruning did inside the latter."""
    times: dict[str, list[float]] = {"without": [], "with": [], "masks": []}
    for _ in range(count + 1):
        spent: list[float] = []
        times["without"].append(seconds(world, partial(train_step, engine, batch, None, spent)))
        times["with"].append(seconds(world, partial(train_step, engine, batch, pruner, spent)))
        times["masks"].append(world.sum([spent[-1]])[0] / world.size)
    return times


def train_step(engine: Engine, batch: Batch, pruner: Pruner | None, spent: list[float]) -> None:
    """Do one optimizer step; append the seconds that mask work took in it to `spent`."""
    predictions = engine(batch)
    engine.backward(masked_language_loss(predictions.tokens, batch.labels) / batch.counts.predicted)
    before = timed(engine.device, pruner.before_step) if pruner else 0.0
    engine.step()
    after = timed(engine.device, partial(pruner.after_step, 1)) if pruner else 0.0
    spent.append(before + after)


def random_batch(settings: MaskBenchSettings, world: World) -> Batch:
    """Return one micro-batch of random tokens, 15 % of them to predict; a step costs the same on any text."""
    generator = torch.Generator().manual_seed(world.rank)
    size = (settings.rows, settings.length)
    tokens = torch.randint(1000, 30_000, size, generator=generator)
    positions = torch.randperm(tokens.numel(), generator=generator)[: round(0.15 * tokens.numel())]
    labels = tokens.reshape(-1)[positions]
    counts = Counts(len(positions), tokens.numel(), settings.rows)
    return Batch(tokens, None, None, positions, labels, None, counts).to(world.device)


def seconds(world: World, work: Callable[[], object]) -> float:
    """Time collective work between two barriers; the mean over ranks."""
    world.barrier()
    spent = timed(world.device, work)
    return world.sum([spent])[0] / world.size


def median(values: list[float]) -> float:
    """Return the median without the first value when there are more: it warms caches up."""
    return statistics.median(values[1:] or values)


def device_name(device: torch.device) -> str:
    """Return what the benchmark ran on, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()
