"""A save that is complete on the machines' own disks is not lost when the copy to the shared disk never came."""

from pathlib import Path
from typing import Any

import pytest

from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.integrity import newest_whole
from sparse_pretrain.checkpoint.layout import saved_steps
from sparse_pretrain.checkpoint.local_disk import LocalShare, finish_local_save, newest_complete
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe


def save_without_the_shared_disk(world: World, values: dict[str, Any], broken: str) -> dict[str, Any]:
    """Save step 2 as usual and step 4 onto the local disks only; then start anew and go on from there."""
    from sparse_pretrain.training import saver as module
    from sparse_pretrain.training.build import build_trainer
    from sparse_pretrain.training.restore import restore

    recipe = TrainRecipe.model_validate(values)
    local, checkpoints = recipe.checkpoint.local, recipe.output / "checkpoints"
    assert local is not None
    trainer, saver = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
    assert trainer.pruner is not None
    trainer.pruner.after_step(0)
    result: dict[str, Any] = {}
    for step in range(1, 5):
        trainer.train_step()
        if step == 2:
            saver.begin(trainer)
            saver.commit(trainer)
            saver.close()
            world.barrier()
            result["left on the local disk"] = [path.name for path in local.rglob("*") if path.is_file()]
            trainer, saver = same_trainer_with_another_saver(trainer, recipe)
    copy = module.copy_files

    def fail(*arguments: Any) -> None:
        raise OSError("the shared disk is gone")

    module.copy_files = fail  # type: ignore[assignment]
    saver.begin(trainer)
    try:
        saver.commit(trainer)
    except UserError as error:
        result["error"] = str(error)
    module.copy_files = copy  # type: ignore[assignment]
    result["before"] = saved_steps(checkpoints)
    world.barrier()
    if world.is_first and broken:
        next(local.rglob(broken)).unlink()
    world.barrier()
    said: list[str] = []
    owner = read_owner(checkpoints)
    finish_local_save(
        checkpoints,
        local,
        owner.run if owner else None,
        world,
        lambda: module.take_over(checkpoints, world),
        said.append,
    )
    result["said"] = said
    newest, _ = newest_whole(checkpoints, world, said.append)
    assert newest is not None
    result["newest"] = newest.name
    again, _ = build_trainer(recipe, open_inputs(recipe), world, "fp32", [])
    restore(again, newest, None)
    result["same"] = again.step == 4 and all(
        trainer.engine.full_master(name).equal(again.engine.full_master(name))
        for name in trainer.engine.shapes
    )
    return result


def same_trainer_with_another_saver(trainer: Any, recipe: TrainRecipe) -> tuple[Any, Any]:
    from sparse_pretrain.training.saver import Saver

    inputs = open_inputs(recipe)
    return trainer, Saver(
        recipe.output / "checkpoints", recipe.checkpoint, None, inputs.tokenizer, inputs.config
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prepared(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["", "rank-00001.safetensors"])
def test_the_next_start_finishes_a_save_that_is_complete_on_the_local_disks(
    data: Path, tmp_path: Path, broken: str
) -> None:
    recipe = tiny_recipe(
        data,
        tmp_path / "run",
        pruning={"target_sparsity": 0.8, "ramp_end": 4, "end": 6, "frequency": 2},
        checkpoint={"local": str(tmp_path / "local")},
    )
    for result in run_distributed(save_without_the_shared_disk, 2, recipe.model_dump(mode="json"), broken):
        assert result["left on the local disk"] == []
        assert "step 4 was not saved: rank 0: the shared disk is gone" in result["error"]
        assert result["before"] == [2]
        (said,) = result["said"]
        if broken:
            assert "the save of step 4 there could not be used" in said
            assert result["newest"] == "step-0000002"
        else:
            assert "finished the save of step 4 from" in said
            assert result["newest"] == "step-0000004"
            assert result["same"]


def share(step: int, rank: int, ranks: int, start: int = 1) -> LocalShare:
    return LocalShare("x", step, start, rank, ranks, {})


def test_the_newest_save_of_which_every_share_is_there_is_chosen() -> None:
    """Machines may hold different shares, and the same machine's are seen by all its ranks."""
    first, second = (
        [share(8, 0, 2), share(4, 0, 2), share(6, 0, 2)],
        [share(4, 1, 2), share(6, 1, 2, start=2)],
    )
    chosen = newest_complete([first, second], after=-1)
    assert {rank: finder for rank, (finder, _) in chosen.items()} == {0: 0, 1: 1}
    assert {shared.step for _, shared in chosen.values()} == {4}
    assert newest_complete([first, second], after=4) == {}
    both = [*first, *second]
    assert {finder for finder, _ in newest_complete([both, both], after=-1).values()} == {0}
