"""The dense model that a sparse one learns from: recipe to train it first, checks, loading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sparse_pretrain.checkpoint.folder import model_path, read_config, weight_files
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file, sha256_json
from sparse_pretrain.finetune.recipe import AUTO, DistillationSection, FinetuneRecipe, TaskSection
from sparse_pretrain.finetune.task_model import load_task_model, load_tokenizer

IDENTITY_LENGTH = 16


def teacher_recipe(recipe: FinetuneRecipe, fingerprint: str) -> FinetuneRecipe:
    """Return the run that trains the teacher of `teacher: auto`: the same recipe on the dense model.

    Its folder is named by everything that makes the teacher what it is (recipe, texts and labels, weights to
    start from), so that runs which need the same teacher share it, and no other run ever takes it.

    Args:
        recipe: with a `distillation` section whose teacher is `auto`.
        fingerprint: of the task's data.
    """
    section = recipe.distillation
    assert section is not None  # noqa: S101 - the caller's case
    assert section.dense is not None  # noqa: S101 - the recipe's own check
    changes: dict[str, Any] = {
        "model": section.dense,
        "distillation": None,
        "quantization": None,
        "masks": "ignore",
        "seeds": [],
        "overwrite": False,
    }
    dense = recipe.model_copy(update=changes)
    # How ranks share its memory does not make another teacher.
    apart: dict[str, Any] = dict.fromkeys(("output", "sweep", "model", "quantization"), True)
    values = dense.model_dump(mode="json", exclude=apart | {"training": {"zero_stage"}})
    weights = [sha256_file(file) for file in weight_files(model_path(section.dense))]
    identity = sha256_json({"recipe": values, "data": fingerprint, "weights": weights})[:IDENTITY_LENGTH]
    folder = section.teachers or recipe.output.parent / "teachers"
    return dense.model_copy(update={"output": folder / identity})


def check_teacher(
    section: DistillationSection,
    task: TaskSection,
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Refuse a teacher (for `auto`: the dense model) that cannot read the student's batches or has other classes.

    Raises:
        UserError: saying which.
    """
    source = str(section.dense if section.teacher == AUTO else section.teacher)
    path = model_path(source)
    config = read_config(path)
    own = load_tokenizer(path, config, max_length)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"distillation: the teacher {source} has another tokenizer than the student ({len(own)} and "
            f"{len(tokenizer)} tokens); both read the same batches, so give a teacher of the same vocabulary"
        )
    if section.teacher != AUTO and labels:
        check_classes(source, config, labels)


def check_classes(source: str, config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Refuse a teacher whose classes are others than the task's, or in another order."""
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    own = [names[number] for number in sorted(names)]
    unnamed = all(name.startswith("LABEL_") for name in own)
    same = [name.lower() for name in own] == [name.lower() for name in labels]
    if len(own) != len(labels) or not (same or unnamed):
        raise UserError(
            f"distillation.teacher = {source}: its classes are {', '.join(own[:10])}, the task's "
            f"{', '.join(labels[:10])}; set task.labels to the same classes in the teacher's order"
        )


def load_teacher(source: str | Path, task: TaskSection, labels: Sequence[str]) -> PreTrainedModel:
    """Return a fine-tuned model that only answers.

    Raises:
        UserError: not loadable, or without a trained head for the task.
    """
    model = load_task_model(source, task, labels, new_head=False)
    model.requires_grad_(False)
    model.eval()
    return model
