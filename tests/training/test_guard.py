"""Losses and gradients that are not numbers: skipped by all ranks together, counted, and never endless."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pretrain.checkpoint.layout import saved_steps
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.guard import Guard, TrainingDivergedError
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

PRUNING = {"target_sparsity": 0.8, "ramp_end": 4, "end": 4, "frequency": 2, "scorer": {"kind": "movement"}}


class PoisonedObjective:
    """The real objective, but on one rank and some steps its loss is NaN."""

    def __init__(self, inner: Any, steps: set[int], trainer: Any) -> None:
        self._inner = inner
        self._steps = steps
        self._trainer = trainer
        self.part_names = inner.part_names

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        losses = self._inner(*arguments, **named)
        if self._trainer.world.rank == 1 and self._trainer.step in self._steps:
            return losses._replace(total=losses.total * math.nan)
        return losses


def train_poisoned(world: World, recipes: list[dict[str, Any]], bad: list[int]) -> list[dict[str, Any]]:
    """Train with NaN on rank 1 at some steps; say what every step did, and what is left."""
    from sparse_pretrain.training.build import build_trainer

    results = []
    for values in recipes:
        recipe = TrainRecipe.model_validate(values)
        trainer, _ = build_trainer(recipe, open_inputs(recipe), world, recipe.precision, [])  # type: ignore[arg-type]
        trainer._objective = PoisonedObjective(trainer._objective, set(bad), trainer)  # type: ignore[assignment]
        trainer.last_checkpoint = Path("checkpoints/step-0000001")
        result: dict[str, Any] = {"applied": [], "changed": [], "error": None}
        try:
            while trainer.step < recipe.steps:
                before = {name: trainer.engine.full_master(name) for name in trainer.engine.shapes}
                report, _ = trainer.train_step()
                after = {name: trainer.engine.full_master(name) for name in trainer.engine.shapes}
                result["applied"].append(report.applied)
                result["changed"].append(any(not after[name].equal(before[name]) for name in after))
                trainer.guard.check(trainer.step, trainer.last_checkpoint)
        except TrainingDivergedError as error:
            result["error"] = str(error)
        result["skipped"] = trainer.guard.skipped
        result["finite"] = all(bool(torch.isfinite(value).all()) for value in after.values())
        results.append(result)
    return results


def run_poisoned(world: World, values: dict[str, Any], bad: list[int]) -> list[int]:
    """Run to the end with NaN on rank 1 at some steps; return the steps at which something was saved."""
    from sparse_pretrain.training.build import build_trainer

    recipe = TrainRecipe.model_validate(values)
    trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
    trainer._objective = PoisonedObjective(trainer._objective, set(bad), trainer)  # type: ignore[assignment]
    assert trainer.run(saver)
    saver.close()
    return saved_steps(saver.checkpoints)


@pytest.mark.parametrize("bad", [[2, 3]])
def test_a_nan_on_one_rank_skips_the_step_on_all(tmp_path: Path, bad: list[int]) -> None:
    """Weights and moments stay as they were, and training goes on, at every stage."""
    recipe = tiny_recipe(tiny_prepared(tmp_path / "data"), tmp_path / "run", steps=6, pruning=PRUNING)
    values = json.loads(recipe.model_dump_json())
    recipes = [
        values | {"engine": {"stage": stage, "config": None}, "precision": precision}
        for stage in (1, 2, 3)
        for precision in ("fp32", "bf16")
    ]
    for rank in run_distributed(train_poisoned, 2, recipes, bad):
        for result in rank:
            assert result["applied"] == [True, True, False, False, True, True]
            # The first step's learning rate is 0; step 4 zeroes pruned masters at the freeze.
            assert result["changed"][2] is False
            assert result["changed"][4] is True
            assert result["skipped"] == 2
            assert result["finite"]
            assert result["error"] is None


def test_too_many_in_a_row_stop_the_run_and_name_the_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_prepared(tmp_path / "data"), tmp_path / "run", steps=6, guard={"skipped_in_a_row": 3}
    )
    values = json.loads(recipe.model_dump_json())
    for (result,) in run_distributed(train_poisoned, 2, [values], [1, 2, 3, 4]):
        assert result["applied"] == [True, False, False, False]
        assert "step 4: 3 steps in a row" in result["error"]
        assert result["error"].endswith("last good checkpoint: checkpoints/step-0000001")


def test_the_count_starts_again_after_a_good_step() -> None:
    guard = Guard(limit=2)
    for step, applied in enumerate([False, True, False, True], start=1):
        guard.count(1.0, applied)
        guard.check(step, None)
    assert guard.skipped == 2
    guard.count(math.nan, applied=True)
    guard.check(5, None)
    guard.count(math.nan, applied=True)
    with pytest.raises(TrainingDivergedError, match="none yet"):
        guard.check(6, None)
    assert guard.skipped == 2


def test_a_run_must_not_end_in_skipped_steps() -> None:
    guard = Guard(limit=20)
    guard.count(math.nan, applied=False)
    guard.check(7, None)
    assert not guard.healthy
    with pytest.raises(TrainingDivergedError, match="step 8: 1 steps in a row"):
        guard.check(8, None, last=True)


def test_nothing_is_saved_while_steps_are_skipped(tmp_path: Path) -> None:
    """Checkpoints of a diverging run would push the good ones out."""
    recipe = tiny_recipe(
        tiny_prepared(tmp_path / "data"),
        tmp_path / "run",
        steps=6,
        checkpoint={"every": 1, "keep": {"last": 9}},
    )
    for saved in run_distributed(run_poisoned, 2, json.loads(recipe.model_dump_json()), [2, 3]):
        assert saved == [1, 2, 5, 6]


def test_the_count_goes_on_after_a_restart() -> None:
    """Preemption must not give a broken run its patience back."""
    guard = Guard(limit=3)
    guard.count(math.nan, applied=False)
    guard.count(math.nan, applied=False)
    again = Guard(limit=3)
    again.load_state_dict(guard.state_dict())
    again.count(math.nan, applied=False)
    with pytest.raises(TrainingDivergedError, match="3 steps in a row"):
        again.check(7, None)
    assert again.skipped == 3
