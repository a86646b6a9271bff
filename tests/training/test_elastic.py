"""Saved on n ranks at one ZeRO stage, resumed on m at another: the same trajectory, for every n, m and stage."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.checkpoint.layout import step_folder
from sparse_pretrain.checkpoint.shards import MASTER
from sparse_pretrain.checkpoint.store import open_weights
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

RANKS = (1, 2, 3, 4)
STAGES = (1, 2, 3)
SAVED_AT = 3
TOLERANCE = 1e-5
# Saved in the middle of the ramp, with updates before and after.
PRUNING = {"target_sparsity": 0.8, "ramp_end": 5, "end": 6, "frequency": 1}

State = dict[str, Any]


def train(world: World, jobs: list[tuple[dict[str, Any], str | None]]) -> list[State]:
    """Train each recipe from its checkpoint, or from the start with one save; return losses and masks by step."""
    from sparse_pretrain.training.build import build_trainer
    from sparse_pretrain.training.restore import restore

    results = []
    for values, checkpoint in jobs:
        recipe = TrainRecipe.model_validate(values)
        trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
        assert trainer.pruner is not None
        if checkpoint is None:
            trainer.pruner.after_step(0)
        else:
            restore(trainer, Path(checkpoint), saver.teacher_identity)
            assert trainer.step == SAVED_AT
        losses, masks = {}, {}
        while trainer.step < recipe.steps:
            report, _ = trainer.train_step()
            losses[report.step], masks[report.step] = report.loss, trainer.pruner.masks.digest()
            if report.step == SAVED_AT and checkpoint is None:
                saver.begin(trainer)
                saver.commit(trainer)
        saver.close()
        results.append({"losses": losses, "masks": masks})
    return results


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRecipe, dict[tuple[int, int], Any]]:
    """Uninterrupted runs on 1, 2, 3 and 4 ranks at every stage, with a checkpoint each; 8 rows do not divide by 3."""
    folder = tmp_path_factory.mktemp("elastic")
    recipe = tiny_recipe(tiny_prepared(folder / "data"), folder / "run", pruning=PRUNING, steps=6)
    runs = {}
    for ranks in RANKS:
        jobs = [(of(recipe, stage, folder / f"{ranks}-{stage}"), None) for stage in STAGES]
        for stage, state in zip(STAGES, run_distributed(train, ranks, jobs)[0], strict=True):
            runs[ranks, stage] = state | {"output": folder / f"{ranks}-{stage}"}
    return recipe, runs


def of(recipe: TrainRecipe, stage: int, output: Path) -> dict[str, Any]:
    """The recipe's values at another stage and in another folder."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values | {"engine": {"stage": stage, "config": None}, "output": str(output)}


def checkpoint_of(run: State) -> Path:
    return step_folder(run["output"] / "checkpoints", SAVED_AT)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", RANKS)
def test_any_ranks_and_stage_go_on_from_any(
    saved: tuple[TrainRecipe, dict[tuple[int, int], Any]], ranks: int, tmp_path: Path
) -> None:
    """36 resumptions a case, 144 in all: losses within 1e-5 of the uninterrupted run's, masks identical."""
    recipe, runs = saved
    cases = list(product(runs, STAGES))
    jobs = [(of(recipe, stage, tmp_path), str(checkpoint_of(runs[source]))) for source, stage in cases]
    resumed = run_distributed(train, ranks, jobs)
    assert len(cases) == 36
    for rank in resumed:
        for (source, stage), state in zip(cases, rank, strict=True):
            whole = runs[source]
            for step, loss in state["losses"].items():
                what = f"{source} ranks, stage -> {ranks}, {stage}, step {step}"
                assert loss == pytest.approx(whole["losses"][step], abs=TOLERANCE, rel=0), what
                assert state["masks"][step] == whole["masks"][step], what
            assert sorted(state["losses"]) == [4, 5, 6]


def masters_in(world: World, jobs: list[tuple[dict[str, Any], str, str]]) -> list[dict[str, Any]]:
    """Restore in another precision; return the whole masters, before any step and after one."""
    from sparse_pretrain.training.build import build_trainer
    from sparse_pretrain.training.restore import restore

    results = []
    for values, precision, checkpoint in jobs:
        recipe = TrainRecipe.model_validate(values)
        trainer, saver = build_trainer(recipe, open_inputs(recipe), world, precision, [])  # type: ignore[arg-type]
        restore(trainer, Path(checkpoint), saver.teacher_identity)
        masters = {name: trainer.engine.full_master(name).numpy() for name in trainer.engine.shapes}
        results.append({"masters": masters, "loss": trainer.train_step()[0].loss})
    return results


@pytest.mark.slow
def test_another_precision_goes_on_from_the_same_masters(
    saved: tuple[TrainRecipe, dict[tuple[int, int], Any]], tmp_path: Path
) -> None:
    """fp32 on two ranks -> bf16 on three: no bit of a master is lost; and the next loss is bf16-close."""
    recipe, runs = saved
    run = runs[2, 2]
    jobs = [
        (of(recipe, stage, tmp_path) | {"precision": "bf16"}, "bf16", str(checkpoint_of(run)))
        for stage in STAGES
    ]
    reader = open_weights(checkpoint_of(run))
    for state in run_distributed(masters_in, 3, jobs)[0]:
        for name, master in state["masters"].items():
            assert (master == reader.whole(MASTER, name).numpy()).all(), name
        assert state["loss"] == pytest.approx(run["losses"][SAVED_AT + 1], rel=0.02)
