"""Stored logits of a tiny teacher, whole and broken, and recipes that use them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForMaskedLM

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.distillation.stored_logits import shard_path
from sparse_pretrain.training import teacher_logits
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.stored_teacher import check_stored_logits
from sparse_pretrain.training.teacher_logits import write_teacher_logits
from tests.tiny import VOCABULARY, tiny_prepared, tiny_recipe
from tests.tiny_models import tiny_config

STEPS = 3
TOP_K = 9
QUIET = Console(quiet=True)


def stored_folder(folder: Path) -> Path:
    """Write prepared data, a teacher, and its logits in shards of one step, into a folder; return it."""
    tiny_prepared(folder / "data")
    torch.manual_seed(3)
    config = tiny_config(hidden_size=16, num_hidden_layers=1, intermediate_size=20)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_logits, "SHARD_BYTES", 1)
        write_teacher_logits(recipe_of(folder), folder / "logits", TOP_K, QUIET)
    return folder


def recipe_of(folder: Path, distillation: dict[str, Any] | None = None, **changes: Any) -> TrainRecipe:
    """A recipe of three steps on the folder's data with its teacher; `changes` replace sections."""
    section = {"teacher": str(folder / "teacher"), "temperature": 3.0, **(distillation or {})}
    return tiny_recipe(folder / "data", folder / "run", distillation=section, **{"steps": STEPS, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(folder: Path, distillation: dict[str, Any], **changes: Any) -> None:
    """Check the folder's stored logits as a start of training does."""
    recipe = recipe_of(folder, {"precomputed": str(folder / "logits"), **distillation}, **changes)
    check_stored_logits(recipe, open_inputs(recipe_of(folder)).train.manifest.fingerprint, len(VOCABULARY))


def broken_copy(folder: Path, out: Path, number: int = 0) -> Path:
    """Copy the logits with one shard cut short."""
    shutil.copytree(folder / "logits", out)
    broken = shard_path(out, number)
    broken.write_bytes(broken.read_bytes()[:-1])
    return out


def altered(folder: Path, out: Path, **columns: np.ndarray) -> Path:
    """Copy the logits with other columns in the first shard, in a file that is whole."""
    shutil.copytree(folder / "logits", out)
    save_file(load_file(shard_path(out, 0)) | columns, shard_path(out, 0))
    return out
