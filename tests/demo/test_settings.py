"""Both lengths of the demo fit their recipes; neither is run here."""

import pytest

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.demo.settings import FULL, SHORT, DemoSize
from sparse_pretrain.finetune.recipe import FinetuneRecipe


@pytest.mark.parametrize("size", [SHORT, FULL])
def test_overrides_are_valid_and_pruning_reaches_its_target(size: DemoSize) -> None:
    assert load_recipe("demo-teacher", size.teacher, TrainRecipe).pruning is None
    student = load_recipe("demo-prune", size.prune, TrainRecipe)
    assert student.pruning is not None
    assert student.pruning.target_sparsity == 0.85
    assert student.pruning.last_update < student.steps
    tasks = [load_recipe(task.recipe, task.overrides, FinetuneRecipe) for task in size.tasks]
    assert {task.task.kind for task in tasks} == {"classification", "regression"}
    assert all(task.masks == "lock" for task in tasks)
