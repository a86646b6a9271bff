"""`sparse-pretrain train`: one rank of a run, from recipe to exit code."""

import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sparse_pretrain.checkpoint.fence import Claim, read_owner, refuse_second_writer
from sparse_pretrain.checkpoint.integrity import newest_whole
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, STATE, saved_steps, step_folder
from sparse_pretrain.checkpoint.local_disk import finish_local_save
from sparse_pretrain.checkpoint.staging import recover
from sparse_pretrain.config.changes import Change, recipe_changes
from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json, write_text
from sparse_pretrain.imports import quick_imports
from sparse_pretrain.preflight.start import preflight, tell_others
from sparse_pretrain.telemetry.console import ConsoleProgress, redirect_output
from sparse_pretrain.telemetry.metrics_log import MetricsLog
from sparse_pretrain.telemetry.progress_file import ProgressFile
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.telemetry.stacks import show_stacks_on_request
from sparse_pretrain.telemetry.tensorboard import TensorBoardWriter
from sparse_pretrain.training.callback import Callback
from sparse_pretrain.training.deadline import Deadline, end_of_allocation
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.inputs import Inputs, open_inputs
from sparse_pretrain.training.precision import Resolved, resolve_precision
from sparse_pretrain.training.provenance import provenance
from sparse_pretrain.training.signals import STOPPED_EXIT_CODE, StopFlag
from sparse_pretrain.training.stored_teacher import check_stored_samples
from sparse_pretrain.training.takeover import FULL, as_disk_error, reason, take_over
from sparse_pretrain.training.world import World, join_world, rank_from_environment

if TYPE_CHECKING:
    from sparse_pretrain.training.saver import Saver
    from sparse_pretrain.training.trainer import Trainer


def train(recipe: TrainRecipe, allow_change: bool = False) -> int:
    """Run one rank to the end of the recipe, or to a stop signal.

    Args:
        recipe: what to train.
        allow_change: continue a run although its recipe was changed in a way that changes what is trained.

    Returns:
        0 when finished, `STOPPED_EXIT_CODE` when stopped early with a checkpoint saved, 2 when the
        checkpoint to continue from does not fit or a new one cannot be written (disk full), 1 on a failure
        (the traceback is in the rank's log).

    Raises:
        UserError: something in the recipe or its files is wrong.

    A mistake, raised or shown with exit code 2, leaves the run folder as it was.
    """
    # From the first moment on: a signal while libraries load and models are built must not kill a rank.
    stop = StopFlag()
    stop.install()
    show_stacks_on_request()
    rank, size, _ = rank_from_environment()
    log = RankLog(recipe.output, rank)
    try:
        inputs, precision = check(recipe)
        console = redirect_output(log, speaks=rank == 0)
    except UserError as mistake:
        return tell_others(recipe, mistake)
    progress = ProgressFile(recipe.output, rank, size, recipe.steps)
    try:
        try:
            trainer, saver = _prepare(recipe, inputs, precision, join_world(), console, allow_change)
        except UserError as error:
            # Every rank finds the same mistake; once is enough to read it.
            console.print(str(error), soft_wrap=True)
            progress.forget()
            log.forget()
            return 2
        trainer.stop = stop
        trainer.add_listener(progress)
        # From here on there is work to lose: whatever fails is a failure, and its log stays.
        return progress.close(_run(trainer, saver, console))
    except UserError as error:
        console.print(str(error), soft_wrap=True)
        return progress.close(2)
    except Exception as error:
        disk = as_disk_error(error)
        if disk is not None and disk.errno in FULL:
            # Metrics, logs and checkpoints lie on one disk: whichever met it first, the user can help.
            console.print(f"{recipe.output}: {reason(disk)}", soft_wrap=True)
            return progress.close(2)
        with suppress(OSError):
            traceback.print_exc()
        # Rank 0's console may be the one that stays silent: every rank says where to look.
        Console(file=console.file, markup=False, highlight=False).print(
            f"rank {rank}: {type(error).__name__}: {error}; the traceback is in {log.path}", soft_wrap=True
        )
        return progress.close(1)


def check(recipe: TrainRecipe) -> tuple[Inputs, Resolved]:
    """Check everything that can be checked before a process group or a file exists.

    Raises:
        UserError: with what is wrong.
    """
    rank, size, _ = rank_from_environment()
    refuse_second_writer(recipe.output / CHECKPOINTS)
    precision = resolve_precision(recipe.precision)
    Slice(recipe.batch.global_size, recipe.batch.micro_size, rank, size)
    deepspeed_config(recipe, precision, size)
    return open_inputs(recipe), precision


def _label(recipe: TrainRecipe) -> str:
    return "prune" if recipe.pruning else "train"


def _prepare(
    recipe: TrainRecipe,
    inputs: Inputs,
    precision: Resolved,
    world: World,
    console: Console,
    allow_change: bool,
) -> "tuple[Trainer, Saver]":
    """Build the run, bring it to where its newest checkpoint was saved, and write down what it is."""
    label = _label(recipe)
    for warning in preflight(recipe, world):
        console.print(f"{label}: {warning}", soft_wrap=True)
    # DeepSpeed prints while it is imported: only now does that go to the log.
    with quick_imports():
        from sparse_pretrain.training.build import build_trainer
        from sparse_pretrain.training.restore import restore

    folder = recipe.output
    callbacks: list[Callback] = [
        ConsoleProgress(console, label),
        MetricsLog(folder / "metrics.jsonl", recipe.logging.every),
        TensorBoardWriter(folder / "tensorboard", recipe.logging.every),
    ]
    claimed = use_local_saves(recipe, world, console)
    checkpoint, broken = find_checkpoint(recipe, world, console)
    changes: list[Change] = []
    if checkpoint is not None:
        # Before minutes are spent on building what must not go on.
        changes = world.on_first(lambda: check_changes(checkpoint, recipe, allow_change))
    trainer, saver = build_trainer(recipe, inputs, world, precision, callbacks, claimed)
    saver.broken = broken
    if checkpoint is not None:
        restore(trainer, checkpoint, saver.teacher_identity)
        check_stored_samples(recipe, trainer.step, trainer.loader.samples_seen)
        for change in changes:
            console.print(f"{label}: recipe changed: {change}", soft_wrap=True)
        console.print(f"{label}: continuing from {checkpoint}", soft_wrap=True)
    if trainer.step < recipe.steps:
        saver.take_over(world)
    if world.is_first:
        end = end_of_allocation()
        trainer.deadline = None if end is None else Deadline(end, recipe.checkpoint.walltime_margin)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        write_json(
            folder / "provenance.json",
            provenance(inputs.train.manifest.fingerprint, world.size, precision),
        )
    return trainer, saver


def _run(trainer: "Trainer", saver: "Saver", console: Console) -> int:
    """Train to the end, or to a stop signal; return the exit code."""
    recipe, folder, label = trainer.recipe, trainer.recipe.output, _label(trainer.recipe)
    if trainer.step >= recipe.steps:
        console.print(f"{label}: already finished at step {trainer.step}: {folder}", soft_wrap=True)
        return 0
    try:
        finished = trainer.run(saver)
    finally:
        saver.close()
    if not finished:
        # No pictures: whoever asked will not wait for long.
        console.print(f"{label}: {describe_stop(trainer)}; run the same command to continue", soft_wrap=True)
        return STOPPED_EXIT_CODE
    if trainer.world.is_first:
        draw(folder, console)
    return 0


def describe_stop(trainer: "Trainer") -> str:
    """Say where a run stopped, why as far as this rank knows, and which checkpoint it leaves."""
    stop = trainer.stop
    why = f" ({stop.reason}, {time.monotonic() - stop.since:.1f} s ago)" if stop.raised else ""
    newest = trainer.last_checkpoint
    saved = "and saved"
    if not trainer.guard.healthy:
        saved = f"without saving, as updates were being skipped; the newest checkpoint is {newest}"
    elif newest is not None and newest.name != step_folder(newest.parent, trainer.step).name:
        saved = f"in haste; the newest checkpoint is {newest}"
    return f"stopped at step {trainer.step} {saved}{why}"


def draw(folder: Path, console: Console) -> None:
    """Draw a run's pictures; when that fails, say so: the run itself is as good as before."""
    try:
        from sparse_pretrain.telemetry.plots import plot_run  # matplotlib is slow to import

        plot_run(folder)
    except Exception as error:
        traceback.print_exc()
        shown = " ".join(str(error).split())
        console.print(f"{folder / 'plots'}: not drawn ({type(error).__name__}: {shown})", soft_wrap=True)


def use_local_saves(recipe: TrainRecipe, world: World, console: Console) -> Claim | None:
    """Finish a save that the machines' own disks hold and the run folder lacks (collective).

    Returns:
        This start's claim, when there was one to finish.
    """
    local, checkpoints = recipe.checkpoint.local, recipe.output / CHECKPOINTS
    if local is None or not recipe.checkpoint.resume:
        return None
    claims: list[Claim] = []

    def claim() -> Claim:
        claims.append(take_over(checkpoints, world))
        return claims[0]

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    owner = world.on_first(lambda: read_owner(checkpoints))
    finish_local_save(checkpoints, local, owner.run if owner else None, world, claim, say)
    return claims[0] if claims else None


def find_checkpoint(
    recipe: TrainRecipe, world: World, console: Console
) -> tuple[Path | None, dict[int, str]]:
    """Return the checkpoint to continue from, and what is wrong with newer ones by step (collective).

    Raises:
        UserError: none of the checkpoints is whole, or the run shall not resume and there are some.
    """
    checkpoints = recipe.output / CHECKPOINTS
    if not recipe.checkpoint.resume:
        if world.on_first(lambda: saved_steps(checkpoints)):
            raise UserError(
                f"checkpoint.resume = false: {checkpoints} holds checkpoints, and two runs in one folder would mix; "
                "choose another output"
            )
        return None, {}
    world.on_first(lambda: recover(checkpoints))
    return newest_whole(checkpoints, world, lambda text: console.print(text, soft_wrap=True))


def check_changes(checkpoint: Path, recipe: TrainRecipe, allowed: bool) -> list[Change]:
    """Return which settings differ from those that a checkpoint was saved with; refuse some.

    Raises:
        UserError: a change that changes what is trained, and it is not `allowed`.
    """
    changes = recipe_changes(read_json(checkpoint / STATE)["recipe"], recipe.model_dump(mode="json"))
    breaking = [str(change) for change in changes if change.breaks]
    if breaking and not allowed:
        raise UserError(
            f"{checkpoint}: the recipe would train something else from here on: {'; '.join(breaking)}; change it back, "
            "go on nevertheless with --allow-change, or start in another output folder"
        )
    return changes
