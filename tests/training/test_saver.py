"""Saves beside the training: the state of the step they were begun at, whole or not at all, on all ranks alike.

All ranks are started once; every case below reads from what they brought back.
"""

import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse_pretrain.checkpoint.fence import OWNER, claim
from sparse_pretrain.checkpoint.layout import saved_steps, step_folder
from sparse_pretrain.checkpoint.shards import FragmentReader
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.tiny import tiny_prepared, tiny_recipe

STAGES = (1, 2, 3)
EVERY = 3
STEPS = 8
# Frozen between the saves of step 3 and step 6: one in the middle of movement's window, one behind the freeze.
PRUNING = {"target_sparsity": 0.8, "ramp_end": 4, "end": 4, "frequency": 2, "scorer": {"kind": "movement"}}
# Wide enough for fragments that are worth storing without their zeros.
MODEL = {
    "config": {
        "model_type": "bert",
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "max_position_embeddings": 64,
    },
    "dropout": 0.1,
}
RUN = "0123456789abcdef"

Outcome = dict[str, Any]


def same_run(checkpoints: Path) -> None:
    """Let the next start take a run over from a dead process: its identity is known, and the same for twins."""
    owner = {"run": RUN, "start": 1, "token": "", "host": "elsewhere", "process": 1, "process_started": 0.0}
    checkpoints.mkdir(parents=True)
    (checkpoints / OWNER).write_text(json.dumps(owner))


class Cases:
    """What one rank does in turn."""

    def __init__(self, world: World, data: Path, folder: Path) -> None:
        self.world = world
        self.data = data
        self.folder = folder

    def recipe(self, name: str, stage: int = 2, **checkpoint: Any) -> TrainRecipe:
        return tiny_recipe(
            self.data,
            self.folder / name,
            steps=STEPS,
            model=MODEL,
            pruning=PRUNING,
            engine={"stage": stage},
            checkpoint={"every": EVERY, "keep": {"last": 9}, **checkpoint},
        )

    def build(self, recipe: TrainRecipe) -> tuple[Any, Any]:
        from sparse_pretrain.training.build import build_trainer

        if self.world.is_first:
            same_run(recipe.output / "checkpoints")
        self.world.barrier()
        return build_trainer(recipe, open_inputs(recipe), self.world, "fp32", [])

    def train(self, recipe: TrainRecipe, resume_from: Path | None = None) -> Any:
        from sparse_pretrain.training.restore import restore

        trainer, saver = self.build(recipe)
        if resume_from is not None:
            restore(trainer, resume_from, saver.teacher_identity)
        trainer.run(saver)
        saver.close()
        return trainer

    def twins(self, stage: int) -> None:
        """Train once with saves beside the training, the first one so slow that steps pass, and once without."""
        trainer, saver = self.build(self.recipe(f"beside-{stage}", stage))

        def two_steps_later(step: int) -> None:
            while step == EVERY and trainer.step < EVERY + 2:
                time.sleep(0.002)

        with slow_disk(two_steps_later):
            trainer.run(saver)
        saver.close()
        self.train(self.recipe(f"still-{stage}", stage, asynchronous=False))

    def stopped(self, name: str, again: bool) -> Outcome:
        """Ask rank 1 to stop while the save of step 3 is being written; it ends only when it is waited for."""
        trainer, saver = self.build(self.recipe(name))
        waited_for = threading.Event()
        commit, begin = saver.commit, saver.begin

        def ask(trainer: Any) -> None:
            begin(trainer)
            if self.world.rank == 1:
                trainer.stop.note("asked")
                trainer.stop.again = again

        def note(trainer: Any) -> None:
            if saver.pending:
                waited_for.set()
            commit(trainer)

        saver.begin, saver.commit = ask, note
        with slow_disk(lambda step: waited_for.wait(60) and None):
            finished = trainer.run(saver)
        saver.close()
        return {"finished": finished, "step": trainer.step, "newest": trainer.last_checkpoint}

    def failing(self) -> Iterator[tuple[str, Outcome]]:
        """Save one trainer, frozen, under everything that must not become a checkpoint."""
        for stage in (2, 3):
            trainer, _ = self.build(self.recipe(f"failing-{stage}", stage))
            while trainer.step < STEPS - 1:
                trainer.train_step()
            name = next(iter(trainer.pruner.masks))
            _, fragment = next(trainer.engine.fragments())
            yield f"nan in {stage}", self.attempt(trainer, "nan", broken(fragment.master, 0, float("nan")))
            start, copy = trainer.engine.working(name)
            pruned = ~trainer.pruner.masks.part(name, start, copy.numel())
            where = int(pruned.nonzero()[0])
            yield f"mask in {stage}", self.attempt(trainer, "mask", broken(copy, where, 1.0))
            yield f"master in {stage}", self.attempt(trainer, "master", self.broken_master(trainer))
        yield "occupied", self.attempt(trainer, "occupied", slow_disk(None, occupy))
        yield "too big", self.attempt(trainer, "too-big", small_files())
        yield "too big first", self.attempt(trainer, "too-big-first", small_files(), rank=0)
        yield "whole after all", self.attempt(trainer, "whole", None)

    def broken_master(self, trainer: Any) -> Any:
        for name in trainer.pruner.masks:
            part = trainer.engine.part(name)
            if part is not None:
                pruned = ~trainer.pruner.masks.part(name, part.start, part.master.numel())
                return broken(part.master, int(pruned.nonzero()[0]), 0.5)
        raise AssertionError("no prunable weight on this rank")

    def attempt(self, trainer: Any, name: str, trouble: Any, rank: int = 1) -> Outcome:
        """Begin a save and commit it, with trouble on one rank; say what happened and what is left."""
        outcome: Outcome = {}
        saver = self.saver_of(trainer, name)
        saver.take_over(self.world)
        try:
            if trouble is not None and self.world.rank == rank:
                with trouble:
                    saver.begin(trainer)
                    saver._share.written.result()
            else:
                saver.begin(trainer)
            saver.commit(trainer)
        except Exception as error:
            outcome = {"error": type(error).__name__, "said": str(error)}
        saver.close()
        self.world.barrier()
        return outcome | {"steps": saved_steps(saver.checkpoints), "left": left_in(saver.checkpoints)}

    def saver_of(self, trainer: Any, name: str) -> Any:
        from sparse_pretrain.training.saver import Saver

        inputs = open_inputs(trainer.recipe)
        folder = self.folder / f"{name}-{trainer.engine.stage}" / "checkpoints"
        return Saver(folder, trainer.recipe.checkpoint, None, inputs.tokenizer, inputs.config)

    def superseded(self) -> Outcome:
        """Another start claims the run while a save of this one is under way."""
        trainer, _ = self.build(self.recipe("superseded"))
        trainer.train_step()
        saver = self.saver_of(trainer, "taken-over")
        saver.begin(trainer)
        self.world.on_first(lambda: claim(saver.checkpoints).start)
        try:
            saver.commit(trainer)
        except Exception as error:
            saver.close()
            self.world.barrier()
            left = left_in(saver.checkpoints)
            return {"error": type(error).__name__, "steps": saved_steps(saver.checkpoints), "left": left}
        return {}


@contextmanager
def broken(values: torch.Tensor, where: int, value: float) -> Iterator[None]:
    """One value is wrong meanwhile."""
    before = values[where].clone()
    values[where] = value
    yield
    values[where] = before


@contextmanager
def small_files() -> Iterator[None]:
    """The system takes no file beyond 20 kB meanwhile: a write fails in the middle, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def occupy(path: Path) -> None:
    """Lay a folder where a file is to be."""
    path.mkdir()


@contextmanager
def slow_disk(
    wait: Callable[[int], None] | None, prepare: Callable[[Path], None] = lambda path: None
) -> Iterator[None]:
    """Before a rank's file is really written, do something with its path, and wait (given the step)."""
    from sparse_pretrain.training import saver as module

    real = module.write_rank

    def slowly(path: Path, *arguments: Any, **named: Any) -> Any:
        prepare(path)
        if wait is not None:
            wait(int(named["origin"].split()[-1]))
        return real(path, *arguments, **named)

    module.write_rank = slowly  # type: ignore[assignment]
    yield
    module.write_rank = real


def left_in(checkpoints: Path) -> list[str]:
    """Names of unfinished or committed checkpoints."""
    return sorted(path.name for path in checkpoints.iterdir() if "step-" in path.name)


def everything(world: World, data: Path, folder: Path) -> Outcome:
    """Do all cases on one rank."""
    cases = Cases(world, data, folder)
    cases.twins(1)
    cases.twins(2)
    cases.train(cases.recipe("with-zeros", compression="none"))
    cases.train(cases.recipe("resumed"), step_folder(folder / "beside-2" / "checkpoints", 6))
    # Last: once DeepSpeed has made an engine of stage 3, every linear layer of the process is computed in
    # another way, which differs in the last bit.
    cases.twins(3)
    return {
        "stopped": cases.stopped("stopped", again=False),
        "stopped twice": cases.stopped("stopped-twice", again=True),
        "superseded": cases.superseded(),
        **dict(cases.failing()),
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """The folder of all runs, and every rank's outcomes."""
    folder = tmp_path_factory.mktemp("saver")
    return folder, run_distributed(everything, 2, tiny_prepared(folder / "data"), folder)


pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def files_of(folder: Path, run: str, step: int) -> dict[str, bytes]:
    """The shards of a checkpoint by name, and its masks (whose file names its metadata in any order)."""
    checkpoint = step_folder(folder / run / "checkpoints", step)
    shards = {path.name: path.read_bytes() for path in sorted((checkpoint / "weights").iterdir())}
    return shards | {MASK_FILE: MaskSet.load(checkpoint / MASK_FILE).digest().encode()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_save_beside_the_training_holds_the_step_it_was_begun_at(
    done: tuple[Path, list[Outcome]], stage: int
) -> None:
    """Byte for byte what a run that stands still for its saves writes; two steps passed while one was written."""
    folder, _ = done
    for run in (f"beside-{stage}", f"still-{stage}"):
        assert saved_steps(folder / run / "checkpoints") == [3, 6, 8]
    for step in (3, 6, 8):
        beside, still = (files_of(folder, f"{kind}-{stage}", step) for kind in ("beside", "still"))
        assert beside.keys() == still.keys()
        assert len(beside) == 3
        for name in beside:
            assert beside[name] == still[name], (step, name)


def test_leaving_zeros_out_behind_the_freeze_makes_a_checkpoint_smaller_and_loses_nothing(
    done: tuple[Path, list[Outcome]],
) -> None:
    folder, _ = done
    sizes = {
        (run, step): sum(map(len, files_of(folder, run, step).values()))
        for run in ("beside-2", "with-zeros")
        for step in (3, 8)
    }
    # The masters are dense before the freeze.
    assert sizes["beside-2", 3] > 0.95 * sizes["with-zeros", 3]
    assert sizes["beside-2", 8] < 0.7 * sizes["with-zeros", 8]
    small, big = (
        FragmentReader(sorted((step_folder(folder / run / "checkpoints", 8) / "weights").iterdir()))
        for run in ("beside-2", "with-zeros")
    )
    assert small.shapes == big.shapes
    for name in big.shapes:
        assert small.kinds(name) == big.kinds(name)
        for kind in big.kinds(name):
            ours, theirs = small.whole(kind, name), big.whole(kind, name)
            assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32)), (kind, name)


def test_a_run_resumed_from_a_checkpoint_without_zeros_goes_on_bit_for_bit(
    done: tuple[Path, list[Outcome]],
) -> None:
    folder, _ = done
    assert saved_steps(folder / "resumed" / "checkpoints") == [8]
    assert files_of(folder, "resumed", 8) == files_of(folder, "beside-2", 8)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nan", "1 weights are NaN or infinite"),
        ("mask", "outside the mask are not zero in the copy"),
        ("master", "outside the frozen mask are not zero in the fp32 master"),
    ],
)
def test_a_weight_broken_on_one_rank_commits_nothing_on_any(
    done: tuple[Path, list[Outcome]], stage: int, kind: str, said: str
) -> None:
    for outcome in done[1]:
        found = outcome[f"{kind} in {stage}"]
        assert found["error"] == "BrokenWeightsError"
        assert "rank 1" in found["said"]
        assert said in found["said"]
        assert found["steps"] == found["left"] == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("occupied", "rank 1: Is a directory"),
        ("too big", "rank 1: File too large"),
        ("too big first", "rank 0: File too large"),
    ],
)
def test_a_disk_that_refuses_one_rank_is_a_mistake_on_all_and_leaves_nothing(
    done: tuple[Path, list[Outcome]], kind: str, said: str
) -> None:
    for outcome in done[1]:
        found = outcome[kind]
        assert found["error"] == "UserError"
        assert f"step {STEPS - 1} was not saved: {said}" in found["said"]
        assert "\n" not in found["said"]
        assert found["steps"] == found["left"] == []


def test_what_failed_before_is_saved_once_the_trouble_is_gone(done: tuple[Path, list[Outcome]]) -> None:
    for outcome in done[1]:
        assert outcome["whole after all"] == {"steps": [7], "left": ["step-0000007"]}


def test_a_stop_while_a_save_is_under_way_commits_it_and_saves_the_step_it_stops_at(
    done: tuple[Path, list[Outcome]],
) -> None:
    folder, outcomes = done
    checkpoints = folder / "stopped" / "checkpoints"
    assert saved_steps(checkpoints) == [3, 4]
    for outcome in outcomes:
        newest = step_folder(checkpoints, 4)
        assert outcome["stopped"] == {"finished": False, "step": 4, "newest": newest}


def test_a_stop_asked_twice_commits_what_is_under_way_and_begins_nothing(
    done: tuple[Path, list[Outcome]],
) -> None:
    folder, outcomes = done
    checkpoints = folder / "stopped-twice" / "checkpoints"
    assert left_in(checkpoints) == ["step-0000003"]
    for outcome in outcomes:
        newest = step_folder(checkpoints, 3)
        assert outcome["stopped twice"] == {"finished": False, "step": 4, "newest": newest}


def test_a_start_that_was_superseded_in_the_middle_of_a_save_fails_on_all_ranks(
    done: tuple[Path, list[Outcome]],
) -> None:
    for outcome in done[1]:
        assert outcome["superseded"] == {"error": "SupersededError", "steps": [], "left": []}
