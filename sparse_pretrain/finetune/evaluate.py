"""Measure a fine-tuned model on a task."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sparse_pretrain.checkpoint.folder import model_path, read_config, read_masks
from sparse_pretrain.config.load import find_recipe, load_recipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.batches import Collate, Split, collator, encode, measure
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import TaskKind
from sparse_pretrain.finetune.mask_lock import nonzero_outside
from sparse_pretrain.finetune.masks import rename_masks
from sparse_pretrain.finetune.recipe import FinetuneRecipe, Kind, Precision
from sparse_pretrain.finetune.task_model import load_task_model, load_tokenizer
from sparse_pretrain.finetune.tasks import VALIDATION, load_task
from sparse_pretrain.quantization.stored import load_quantization
from sparse_pretrain.training.precision import resolve_precision

RECIPE = "recipe.yaml"


def evaluate(
    model: str | Path,
    task: str | None = None,
    split: str = VALIDATION,
    batch_size: int = 64,
    precision: Precision = "auto",
    overrides: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the metrics of a fine-tuned model, JSON-able.

    Args:
        model: a fine-tuning run's folder, its model folder, or a hub name.
        task: a fine-tuning recipe, whose `task` and `training.max_length` are used: a file, a shipped
            recipe, or a shipped recipe's name without `finetune-`; None: the recipe the model was
            fine-tuned with.
        split: `validation`, `test`, `train`, or one of the task's `more_validation`.
        batch_size: examples per forward pass.
        precision: of the forward pass; auto is fp32 for a model that was trained in int8, whose layers are rounded.
        overrides: `key=value` changes of the recipe.

    Raises:
        UserError: no such model, recipe or split, or a model of another task.
    """
    evaluation = prepare_evaluation(model, task, split, precision, overrides)
    network = evaluation.network
    started = time.perf_counter()
    metrics = evaluation.measure(network, batch_size)
    seconds = time.perf_counter() - started
    masks = read_masks(evaluation.path)
    outside = None
    if masks is not None:
        outside = sum(nonzero_outside(network, rename_masks(masks, network, evaluation.path)).values())
    return {
        "model": str(model),
        "split": split,
        "examples": len(evaluation.examples.examples),
        "metric": evaluation.headline,
        "score": metrics[evaluation.headline],
        "metrics": metrics,
        "nonzero_outside_masks": outside,
        "int8": evaluation.is_int8,
        "seconds": round(seconds, 3),
    }


@dataclass(frozen=True)
class Evaluation:
    """A fine-tuned model and the split of its task that it is measured on.

    Attributes:
        path: folder or hub name.
        network: the torch model, rounding if it was trained in int8.
        is_int8: it was.
        kind: of task.
        examples: the split.
        collate: makes batches of it.
        bf16: the forward pass is autocast.
        headline: the metric that counts.
    """

    path: str
    network: PreTrainedModel
    is_int8: bool
    kind: TaskKind
    examples: Split
    collate: Collate
    bf16: bool
    headline: str

    def measure(self, network: nn.Module, batch_size: int) -> dict[str, float]:
        """Return the metrics of the model, or of another that takes and gives the same."""
        return measure(self.kind, network, self.examples, self.collate, batch_size, self.bf16)


def prepare_evaluation(
    model: str | Path,
    task: str | None,
    split: str,
    precision: Precision = "auto",
    overrides: tuple[str, ...] = (),
) -> Evaluation:
    """Load a model and a split of its task; arguments and errors are those of `evaluate`."""
    path = model_path(model)
    recipe = load_recipe(recipe_of(path, task), overrides, FinetuneRecipe)
    config = read_config(path)
    trained_for = kind_of_model(config)
    if trained_for != recipe.task.kind:
        raise UserError(f"{model}: fine-tuned for {trained_for}, the task is a {recipe.task.kind}")
    kind = kind_of(recipe.task)
    labels = class_names(config) if kind.has_classes else ()
    data = load_task(recipe.task, labels)
    if split not in data.splits:
        raise UserError(f"split = {split!r}: the task has {', '.join(data.splits)}")
    tokenizer = load_tokenizer(path, config, recipe.training.max_length, recipe.task.kind)
    network = load_task_model(path, recipe.task, labels, new_head=False)
    is_int8 = load_quantization(network, path)
    # Levels times scale are rounded once more in bf16; no int8 engine does that.
    bf16 = resolve_precision("fp32" if is_int8 and precision == "auto" else precision) == "bf16"
    examples = encode(kind, tokenizer, {split: data.splits[split]}, recipe.training.max_length)[split]
    return Evaluation(
        path=path,
        network=network,
        is_int8=is_int8,
        kind=kind,
        examples=examples,
        collate=collator(kind, tokenizer),
        bf16=bf16,
        headline=recipe.task.headline,
    )


def kind_of_model(config: PretrainedConfig) -> Kind:
    """Return the kind of task a model was fine-tuned for, by its class and its outputs."""
    name = (config.architectures or [""])[0]
    of_class: dict[str, Kind] = {
        "ForTokenClassification": "tokens",
        "ForMultipleChoice": "choice",
        "ForQuestionAnswering": "span",
    }
    for ending, kind in of_class.items():
        if name.endswith(ending):
            return kind
    is_regression = config.problem_type == "regression" or config.num_labels == 1
    return "regression" if is_regression else "classification"


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """Return the names of a classifier's classes in the order of their numbers."""
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    return tuple(names[number] for number in sorted(names))


def recipe_of(path: str, task: str | None) -> Path:
    """Return the recipe that describes the task."""
    if task is None:
        own = Path(path).parent / RECIPE
        if own.is_file():
            return own
        raise UserError(f"{path}: no {RECIPE} beside the model; say with --task what to measure")
    try:
        return find_recipe(task)
    except UserError:
        return find_recipe(f"finetune-{task}")
