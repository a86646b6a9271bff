"""A resumed run is the uninterrupted run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

State = dict[str, Any]

# Scorers with memory of their own: step 3 lies in the middle of movement's window.
PRUNING = {"target_sparsity": 0.8, "ramp_end": 4, "end": 4, "frequency": 2}
# Saved at update steps, with masters of pruned weights already zero before the freeze.
HARD = {"target_sparsity": 0.8, "ramp_end": 6, "end": 6, "frequency": 3, "regrowth": False}
MOVEMENT = PRUNING | {"scorer": {"kind": "movement"}, "allocation": {"kind": "global"}}
UNDECAYED = PRUNING | {
    "scorer": {"kind": "magnitude", "exclude_weight_decay": True},
    "structure": {"kind": "block", "rows": 4, "columns": 1},
    "masks": {"packed": True},
}


def train_from(world: World, jobs: list[tuple[dict[str, Any], str | None]]) -> list[State]:
    """Train each recipe to its end, from a checkpoint folder or from the start; return all that has memory."""
    from sparse_pretrain.training.build import build_trainer
    from sparse_pretrain.training.restore import restore

    results = []
    for values, checkpoint in jobs:
        recipe = TrainRecipe.model_validate(values)
        trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
        if checkpoint is not None:
            restore(trainer, Path(checkpoint), saver.teacher_identity)
        started_at = trainer.step
        trainer.run(saver)
        assert trainer.pruner is not None
        results.append(
            {
                "started_at": started_at,
                "weights": {name: trainer.engine.full_master(name).numpy() for name in trainer.engine.shapes},
                "moments": {
                    (name, kind): moment.numpy().copy()
                    for name, fragment in trainer.engine.fragments()
                    for kind, moment in fragment.moments.items()
                },
                "optimizer_steps": trainer.engine.optimizer_steps,
                "masks": trainer.pruner.masks.digest(),
                "frozen": trainer.pruner.frozen,
                "samples_seen": trainer.loader.samples_seen,
                "random": torch.get_rng_state().numpy(),
                "evaluation": trainer.metrics,
            }
        )
    return results


def check_bitwise(resumed: State, uninterrupted: State) -> None:
    """Everything equal, weights and moments bit for bit."""
    for kind in ("weights", "moments"):
        assert resumed[kind].keys() == uninterrupted[kind].keys()
        for name, value in uninterrupted[kind].items():
            assert (resumed[kind][name] == value).all(), name
    assert (resumed["random"] == uninterrupted["random"]).all()
    for key in ("optimizer_steps", "masks", "frozen", "samples_seen", "evaluation"):
        assert resumed[key] == uninterrupted[key], key


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> TrainRecipe:
    """Pruning a saved model with dropout; checkpoints in mid-ramp (step 3), and behind freeze and evaluation (6)."""
    folder = tmp_path_factory.mktemp("resume")
    data = tiny_prepared(folder / "data")
    base = tiny_recipe(data, folder / "run")
    config = AutoConfig.for_model(**base.model.config, vocab_size=read_manifest(data).vocabulary_size)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "model")
    return tiny_recipe(
        data,
        folder / "run",
        model={"source": str(folder / "model"), "dropout": 0.1},
        pruning=PRUNING,
        learning_rate={"kind": "rewinding", "warmup": 0.125},
        checkpoint={"every": 3, "keep": {"last": 9}},
        evaluation={"every": 4, "rows": 16},
    )


def job(recipe: TrainRecipe, stage: int, output: Path) -> dict[str, Any]:
    """The recipe's values at another stage and in another folder."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    return values | {"engine": {"stage": stage, "config": None}, "output": str(output)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(recipe: TrainRecipe, tmp_path: Path) -> None:
    """ZeRO 1, 2, 3 in fp32 on two ranks, resumed mid-ramp and after the freeze, in new processes."""
    pruning = {1: HARD, 2: MOVEMENT, 3: UNDECAYED}
    jobs = {
        stage: job(recipe, stage, tmp_path / f"stage-{stage}") | {"pruning": pruning[stage]}
        for stage in (1, 2, 3)
    }
    whole = run_distributed(train_from, 2, [(jobs[stage], None) for stage in (1, 2, 3)])
    for step in (3, 6):
        folders = [
            str(tmp_path / f"stage-{stage}" / "checkpoints" / f"step-{step:07d}") for stage in (1, 2, 3)
        ]
        again = [
            (values | {"output": str(tmp_path / f"again-{step}-{values['engine']['stage']}")}, folder)
            for values, folder in zip(jobs.values(), folders, strict=True)
        ]
        for rank, resumed in enumerate(run_distributed(train_from, 2, again)):
            for state, uninterrupted in zip(resumed, whole[rank], strict=True):
                assert state["started_at"] == step
                check_bitwise(state, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_resume_on_another_number_of_ranks_and_another_stage(recipe: TrainRecipe, tmp_path: Path) -> None:
    """Two ranks at stage 3 save mid-ramp; one rank at stage 1 goes on along the same trajectory.

    The scores that movement has gathered so far are cut anew, too.
    """
    model = {**json.loads(recipe.model_dump_json())["model"], "dropout": 0.0}
    values = job(recipe, 3, tmp_path / "two") | {"model": model, "pruning": MOVEMENT}
    whole = run_distributed(train_from, 2, [(values, None)])[0][0]
    folder = tmp_path / "two" / "checkpoints" / "step-0000003"
    other = job(recipe, 1, tmp_path / "one") | {"model": model, "pruning": MOVEMENT}
    (resumed,) = run_distributed(train_from, 1, [(other, str(folder))])[0]
    assert resumed["started_at"] == 3
    assert resumed["masks"] == whole["masks"]
    for name, value in whole["weights"].items():
        assert abs(resumed["weights"][name] - value).max() < 1e-5, name
