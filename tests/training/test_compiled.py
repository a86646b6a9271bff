"""Layers through torch.compile train what layers run one kernel after the other train."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sparse_pretrain.models.loading import build_model
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe
from tests.training.test_parity import PRUNING, check_same, train_recipes, with_stage


def train_and_count(world: World, recipes: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Train every recipe; also return how many functions were compiled."""
    from torch._dynamo.utils import counters

    results = train_recipes(world, recipes)
    return results, counters["frames"]["ok"]


@pytest.mark.slow
def test_compiled_layers_train_the_same(tmp_path: Path) -> None:
    """Losses, masks and weights: pruning, hidden states of a teacher, rows of several pairs, accumulation."""
    data = tiny_prepared(tmp_path / "data", sequences=True)
    base = tiny_recipe(data, tmp_path / "run")
    build_model(open_inputs(base).config, base.model, next_sentence=False).save_pretrained(
        tmp_path / "teacher"
    )
    distillation = {"teacher": str(tmp_path / "teacher"), "hidden": {}}
    recipe = tiny_recipe(data, tmp_path / "run", pruning=PRUNING, distillation=distillation)
    recipes = [with_stage(recipe, 2), with_stage(recipe, 2, engine={"stage": 2, "compile": True})]
    (((eager, compiled), count),) = run_distributed(train_and_count, 1, recipes)
    assert count
    check_same(compiled, eager)


def test_compiling_gathered_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="compile = true needs stage 1 or 2"):
        tiny_recipe(tmp_path, tmp_path / "run", engine={"stage": 3, "compile": True})
