"""`sparse-pretrain train`: one rank of a run, from recipe to exit code."""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from sparse_pretrain.checkpoint.store import CHECKPOINTS, newest_checkpoint
from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json, write_text
from sparse_pretrain.telemetry.console import ConsoleProgress, redirect_output
from sparse_pretrain.telemetry.metrics_log import MetricsLog
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.telemetry.tensorboard import TensorBoardWriter
from sparse_pretrain.training.callback import Callback
from sparse_pretrain.training.deepspeed_config import deepspeed_config
from sparse_pretrain.training.inputs import Inputs, open_inputs
from sparse_pretrain.training.precision import Resolved, resolve_precision
from sparse_pretrain.training.provenance import provenance
from sparse_pretrain.training.signals import STOPPED_EXIT_CODE, StopFlag
from sparse_pretrain.training.stored_teacher import check_stored_samples
from sparse_pretrain.training.world import World, join_world, rank_from_environment

if TYPE_CHECKING:
    from sparse_pretrain.training.snapshot import Snapshots
    from sparse_pretrain.training.trainer import Trainer


def train(recipe: TrainRecipe) -> int:
    """Run one rank to the end of the recipe, or to a stop signal.

    Returns:
        0 when finished, `STOPPED_EXIT_CODE` when stopped early with a checkpoint saved, 2 when the
        checkpoint to continue from does not fit, 1 on a failure (the traceback is in the rank's log).

    Raises:
        UserError: something in the recipe or its files is wrong.

    A mistake, raised or shown with exit code 2, leaves the run folder as it was.
    """
    # From the first moment on: a signal while libraries load and models are built must not kill a rank.
    stop = StopFlag()
    stop.install()
    inputs, precision = check(recipe)
    rank, _, _ = rank_from_environment()
    log = RankLog(recipe.output, rank)
    console = redirect_output(log, speaks=rank == 0)
    try:
        try:
            trainer, snapshots = _prepare(recipe, inputs, precision, join_world(), console)
        except UserError as error:
            # Every rank finds the same mistake; once is enough to read it.
            console.print(str(error), soft_wrap=True)
            log.forget()
            return 2
        trainer.stop = stop
        # From here on there is work to lose: whatever fails is a failure, and its log stays.
        return _run(trainer, snapshots, console)
    except Exception as error:
        traceback.print_exc()
        # Rank 0's console may be the one that stays silent: every rank says where to look.
        Console(file=console.file, markup=False, highlight=False).print(
            f"rank {rank}: {type(error).__name__}: {error}; the traceback is in {log.path}", soft_wrap=True
        )
        return 1


def check(recipe: TrainRecipe) -> tuple[Inputs, Resolved]:
    """Check everything that can be checked before a process group or a file exists.

    Raises:
        UserError: with what is wrong.
    """
    rank, size, _ = rank_from_environment()
    precision = resolve_precision(recipe.precision)
    Slice(recipe.batch.global_size, recipe.batch.micro_size, rank, size)
    deepspeed_config(recipe, precision, size)
    return open_inputs(recipe), precision


def _label(recipe: TrainRecipe) -> str:
    return "prune" if recipe.pruning else "train"


def _prepare(
    recipe: TrainRecipe, inputs: Inputs, precision: Resolved, world: World, console: Console
) -> "tuple[Trainer, Snapshots]":
    """Build the run, bring it to where its newest checkpoint was saved, and write down what it is."""
    # DeepSpeed prints while it is imported: only now does that go to the log.
    from sparse_pretrain.training.build import build_trainer

    folder = recipe.output
    label = _label(recipe)
    callbacks: list[Callback] = [
        ConsoleProgress(console, label),
        MetricsLog(folder / "metrics.jsonl", recipe.logging.every),
        TensorBoardWriter(folder / "tensorboard", recipe.logging.every),
    ]
    trainer, snapshots = build_trainer(recipe, inputs, world, precision, callbacks)
    checkpoint = world.broadcast(find_checkpoint(recipe, console) if world.is_first else None)
    if isinstance(checkpoint, UserError):
        raise checkpoint
    if checkpoint is not None:
        snapshots.restore(trainer, checkpoint)
        check_stored_samples(recipe, trainer.step, trainer.loader.samples_seen)
        console.print(f"{label}: continuing from {checkpoint}", soft_wrap=True)
    if world.is_first:
        say_changes(folder / "recipe.yaml", recipe, console)
        write_text(folder / "recipe.yaml", to_yaml(recipe))
        write_json(
            folder / "provenance.json",
            provenance(inputs.train.manifest.fingerprint, world.size, precision),
        )
    return trainer, snapshots


def _run(trainer: "Trainer", snapshots: "Snapshots", console: Console) -> int:
    """Train to the end, or to a stop signal; return the exit code."""
    recipe, folder, label = trainer.recipe, trainer.recipe.output, _label(trainer.recipe)
    if trainer.step >= recipe.steps:
        console.print(f"{label}: already finished at step {trainer.step}: {folder}", soft_wrap=True)
        return 0
    finished = trainer.run(snapshots.save)
    if trainer.world.is_first:
        draw(folder, console)
    if not finished:
        saved = "and saved"
        if not trainer.guard.healthy:
            saved = f"without saving, as updates were being skipped; the newest checkpoint is {trainer.last_checkpoint}"
        console.print(
            f"{label}: stopped at step {trainer.step} {saved}; run the same command to continue",
            soft_wrap=True,
        )
        return STOPPED_EXIT_CODE
    return 0


def draw(folder: Path, console: Console) -> None:
    """Draw a run's pictures; when that fails, say so: the run itself is as good as before."""
    try:
        from sparse_pretrain.telemetry.plots import plot_run  # matplotlib is slow to import

        plot_run(folder)
    except Exception as error:
        traceback.print_exc()
        shown = " ".join(str(error).split())
        console.print(f"{folder / 'plots'}: not drawn ({type(error).__name__}: {shown})", soft_wrap=True)


def find_checkpoint(recipe: TrainRecipe, console: Console) -> Path | UserError | None:
    """Return the checkpoint to continue from; an error is returned so that every rank can raise it."""
    checkpoints = recipe.output / CHECKPOINTS
    if not recipe.checkpoint.resume:
        return None
    try:
        return newest_checkpoint(checkpoints, lambda text: console.print(text, soft_wrap=True))
    except UserError as error:
        return error


def say_changes(path: Path, recipe: TrainRecipe, console: Console) -> None:
    """Show which keys differ from the recipe that the run was started with."""
    if not path.is_file():
        return
    before = flatten(yaml.safe_load(path.read_text(encoding="utf-8")))
    after = flatten(recipe.model_dump(mode="json"))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            console.print(f"recipe changed: {key}: {before.get(key)} -> {after.get(key)}", soft_wrap=True)


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Return nested mappings as `{"a.b": value}`."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
