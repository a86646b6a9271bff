"""Numbers of ranks that do not divide the batch: the same trajectory as one rank's."""

from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.models.loading import build_model
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.inputs import open_inputs
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe
from tests.training.test_parity import PRUNING, check_same, train_recipes, with_stage


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    """Pruning, pairs with NSP, and a teacher: 8 rows a step in micro-batches of up to 2."""
    folder = tmp_path_factory.mktemp("uneven")
    data = tiny_prepared(folder / "data")
    base = tiny_recipe(data, folder / "run")
    build_model(open_inputs(base).config, base.model, next_sentence=False).save_pretrained(folder / "teacher")
    distillation = {"teacher": str(folder / "teacher"), "hidden": {}, "attention": {}}
    return tiny_recipe(data, folder / "run", pruning=PRUNING, distillation=distillation)


def recipes_of(recipe: TrainRecipe) -> list[dict[str, Any]]:
    """With shares of 3, 3 and 2 rows on three ranks, and of 2, 1 and 1 in passes of one row."""
    one_by_one = {"batch": {"global_size": 4, "micro_size": 1}}
    return [
        with_stage(recipe, 2),
        with_stage(recipe, 3),
        with_stage(recipe, 2, **one_by_one),
        with_stage(recipe, 3, **one_by_one),
    ]


def several_sequences(recipe: TrainRecipe, folder: Path) -> list[dict[str, Any]]:
    """The same on rows of up to three pairs, whole and sharded weights, our attention and eager's with its maps."""
    data = {"path": tiny_prepared(folder / "sequences", sequences=True)}
    logits_only = {"teacher": recipe.distillation.teachers[0]} if recipe.distillation else None
    return [
        with_stage(recipe, 2, data=data),
        with_stage(recipe, 3, data=data, distillation=logits_only),
    ]


def test_three_ranks_train_as_one(recipe: TrainRecipe, tmp_path: Path) -> None:
    """Losses, masks and weights; passes of 2 and of 1 row, and passes without a row of their own."""
    recipes = recipes_of(recipe) + several_sequences(recipe, tmp_path)
    (one,) = run_distributed(train_recipes, 1, recipes)
    for rank in run_distributed(train_recipes, 3, recipes):
        for found, expected in zip(rank, one, strict=True):
            check_same(found, expected)
    assert one[0]["losses"] != one[2]["losses"]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (3, 2), (4, 1), (5, 1), (8, 1)])
def test_deepspeed_is_told_as_many_micro_batches_as_there_are(world_size: int, accumulation: int) -> None:
    recipe = load_recipe("train-tiny", ["batch.micro_size=2"], TrainRecipe)
    config = deepspeed_config(recipe, "fp32", world_size)
    assert config["gradient_accumulation_steps"] == accumulation
    # DeepSpeed would insist on micro-batch x accumulation x ranks.
    assert "train_batch_size" not in config
