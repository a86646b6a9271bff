"""What a run would need: parameters, prunable weights, memory per rank, steps. Nothing is loaded."""

from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.config.pruning import MovementScorer
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice
from sparse_pretrain.data.manifest import Manifest
from sparse_pretrain.data.mix import training_manifest
from sparse_pretrain.models.loading import empty_model, load_config, supports_next_sentence
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.precision import DTYPES, resolve_precision
from sparse_pretrain.training.pruning_inputs import find_prunable

MEBIBYTE = 2**20


def plan(recipe: TrainRecipe, world_size: int) -> dict[str, Any]:
    """Return the numbers of `train --dry-run`, JSON-able.

    Memory counts what grows with parameters (working copy, gradients, masters, moments, masks,
    teacher); activations come on top and depend on the micro-batch.

    Raises:
        UserError: the recipe cannot run: unknown model, fewer rows than ranks, wrong config.
    """
    part = Slice(recipe.batch.global_size, recipe.batch.micro_size, 0, world_size)
    precision = resolve_precision(recipe.precision)
    deepspeed_config(recipe, precision, world_size)
    manifest = training_manifest(recipe.data)
    model = model_without_memory(recipe, manifest)
    parameters = sum(weight.numel() for weight in model.parameters())
    pruning = find_prunable(recipe.pruning, model).plan
    return {
        "model_class": type(model).__name__,
        "parameters": parameters,
        "prunable_weights": pruning.weights,
        "prunable_matrices": pruning.matrices,
        "zeros_at_the_end": pruning.zeros,
        "precision": precision,
        "zero_stage": recipe.engine.stage,
        "ranks": world_size,
        "steps": recipe.steps,
        "warmup_steps": recipe.warmup_steps,
        "accumulation": part.accumulation,
        "micro_batch_rows": {"smallest": part.smallest_pass, "largest": part.largest_pass},
        "samples": recipe.steps * recipe.batch.global_size,
        "epochs": recipe.steps * recipe.batch.global_size / manifest.splits["train"].rows
        if manifest
        else None,
        "data": manifest.fingerprint if manifest else None,
        "memory_per_rank_bytes": memory_per_rank(
            parameters, pruning.weights, recipe, world_size, DTYPES[precision].itemsize
        ),
    }


def model_without_memory(recipe: TrainRecipe, manifest: Manifest | None) -> PreTrainedModel:
    """Build the student on the meta device: shapes and names, no values."""
    config = load_config(recipe.model, manifest.vocabulary_size if manifest else None, planning=True)
    # The paper's data has segment pairs; before preparation that is the best guess.
    pairs = manifest is None or manifest.has_pairs
    return empty_model(config, next_sentence=pairs and supports_next_sentence(config))


def memory_per_rank(
    parameters: int, prunable: int, recipe: TrainRecipe, world_size: int, width: int
) -> dict[str, int]:
    """Return bytes per rank by purpose (Rajbhandari et al. 2020, section 3, plus masks and teacher)."""
    stage = recipe.engine.stage
    teacher = 0
    if recipe.distillation is not None:
        sharded = recipe.distillation.placement == "sharded"
        # The student's size stands for each teacher's; stored logits stay on the disk.
        copies = 0 if recipe.distillation.precomputed is not None else len(recipe.distillation.teachers)
        teacher = copies * parameters * width // (world_size if sharded else 1)
    parts = {
        "working_copy": parameters * width // (world_size if stage == 3 else 1),
        "gradients": parameters * width // (world_size if stage >= 2 else 1)
        # And this rank's part in fp32, for the step.
        + (parameters * 4 // world_size if width == 2 else 0),
        "masters_and_moments": parameters * 12 // world_size,
        "scores": prunable * 4 // world_size if remembers_scores(recipe) else 0,
        "masks": -(-prunable // 8) if recipe.pruning and recipe.pruning.masks.packed else prunable,
        "teacher": teacher,
    }
    return {**parts, "total": sum(parts.values())}


def remembers_scores(recipe: TrainRecipe) -> bool:
    """Say whether the recipe's scorer keeps a number for every weight; of a custom one nothing is known."""
    scorer = recipe.pruning.scorer if recipe.pruning is not None else None
    return isinstance(scorer, MovementScorer) or getattr(scorer, "exclude_weight_decay", False)


def render(recipe: TrainRecipe, numbers: dict[str, Any], console: Console) -> None:
    """Print the resolved recipe and the numbers for a person."""
    console.print(to_yaml(recipe), markup=False, highlight=False)
    table = Table(title="dry run: nothing was trained", show_header=False)
    memory = numbers["memory_per_rank_bytes"]
    table.add_row("model", f"{numbers['model_class']}, {numbers['parameters']:,} parameters")
    if numbers["prunable_matrices"]:
        table.add_row(
            "prunable",
            f"{numbers['prunable_weights']:,} weights in {numbers['prunable_matrices']} matrices, "
            f"{numbers['zeros_at_the_end']:,} zeros at the end",
        )
    table.add_row("engine", f"ZeRO {numbers['zero_stage']}, {numbers['precision']}, {numbers['ranks']} ranks")
    epochs = f", {numbers['epochs']:.2f} epochs" if numbers["epochs"] is not None else ""
    table.add_row(
        "steps",
        f"{numbers['steps']:,} ({numbers['warmup_steps']:,} warm-up), {numbers['samples']:,} samples{epochs}",
    )
    table.add_row("micro-batches", describe_micro_batches(recipe, numbers))
    table.add_row("data", describe_data(recipe, numbers))
    table.add_row(
        "memory per rank",
        ", ".join(f"{name.replace('_', ' ')} {value / MEBIBYTE:,.0f} MiB" for name, value in memory.items())
        + ", activations on top",
    )
    console.print(table)


def describe_data(recipe: TrainRecipe, numbers: dict[str, Any]) -> str:
    """Name the prepared folders, and the fingerprint of what is in them if they exist."""
    mix, path = recipe.data.mix, recipe.data.path
    shares = [f"{weight / sum(mix.values()):.1%} {folder}" for folder, weight in mix.items()]
    return f"{', '.join(shares) if mix else path}: {numbers['data'] or 'not prepared yet'}"


def describe_micro_batches(recipe: TrainRecipe, numbers: dict[str, Any]) -> str:
    """Say how many micro-batches a step has on each rank and how many rows, and when not all have as many."""
    smallest, largest = numbers["micro_batch_rows"]["smallest"], numbers["micro_batch_rows"]["largest"]
    count = f"{numbers['accumulation']} a step on each rank"
    if smallest == largest:
        return f"{count}, {largest} rows each"
    shared = f"{recipe.batch.global_size} rows on {numbers['ranks']} ranks"
    return f"{count}, uneven: {smallest} to {largest} rows ({shared})"
