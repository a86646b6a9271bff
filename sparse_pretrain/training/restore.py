"""From a checkpoint to a running trainer, on any number of ranks and at any ZeRO stage.

Each rank reads the ranges it owns from memory-mapped files, one parameter at a time: nothing is converted
first, and no rank holds more than its own shards and one parameter.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparse_pretrain.checkpoint.layout import STATE
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.checkpoint.store import open_weights, read_masks
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.training.engine import MOMENTS, Engine
from sparse_pretrain.training.state import SCORER
from sparse_pretrain.training.trainer import Trainer


def restore(trainer: Trainer, folder: Path, teacher_identity: str | None) -> None:
    """Bring a freshly built trainer to where the checkpoint was saved.

    With the same number of ranks and the same stage the run goes on bit for bit.

    Args:
        trainer: at step 0.
        folder: a whole checkpoint.
        teacher_identity: of the teachers that the trainer has.

    Raises:
        UserError: the checkpoint belongs to another model, other data, or another teacher.
    """
    state = read_json(folder / STATE)
    reader = open_weights(folder)
    check_same_model(trainer.engine, reader, folder)
    if state["teacher"] != teacher_identity:
        raise UserError(
            f"distillation.teacher: {folder} was trained with another teacher; give the same one, or "
            "start in another output folder"
        )
    trainer.loader.load_state_dict(state["loader"])
    if (trainer.pruner is None) != (state["pruner"] is None):
        raise UserError(f"pruning: {folder} was saved {'without' if trainer.pruner else 'with'} pruning")
    restore_weights(trainer.engine, reader, state["optimizer_steps"])
    trainer.engine.load_loss_scale_state(state["loss_scale"])
    if trainer.pruner is not None:
        restore_pruner(trainer.pruner, trainer.engine, reader, folder, state)
    restore_random_states(reader, trainer.world.rank, trainer.world.size == state["world_size"])
    trainer.metrics = state["metrics"]
    trainer.evaluated_at = int(state["evaluated_at"])
    trainer.guard.load_state_dict(state["guard"])
    trainer.last_checkpoint = folder
    trainer.step = int(state["step"])


def restore_pruner(
    pruner: Pruner, engine: Engine, reader: FragmentReader, folder: Path, state: dict[str, Any]
) -> None:
    """Restore masks, schedule and the scorer's memory, and mask the copies that forward uses.

    Raises:
        UserError: masks or scorer are not those of this model and recipe.
    """
    masks = read_masks(folder)
    if masks is None:
        raise UserError(f"{folder}: the masks are missing")
    try:
        pruner.load_state_dict(state["pruner"], masks)
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}: pruning state: {error}") from None
    restore_scorer(pruner, engine, reader)
    check_will_freeze(pruner, int(state["step"]), folder)
    engine.mask_working_copies(pruner.masks)


def check_will_freeze(pruner: Pruner, step: int, folder: Path) -> None:
    """Refuse a schedule whose last update has passed while the saved masks are still open."""
    if not pruner.frozen and step >= pruner.schedule.last_update:
        raise UserError(
            f"pruning.end: the recipe's last mask update is after step {pruner.schedule.last_update}, {folder} is at "
            f"step {step} and its masks are not frozen yet: they never would; give a later pruning.end"
        )


def check_same_model(engine: Engine, reader: FragmentReader, folder: Path) -> None:
    """Refuse weights of another architecture or vocabulary before anything is overwritten."""
    if dict(reader.shapes) == engine.shapes:
        return
    names = sorted(set(reader.shapes) | set(engine.shapes))
    name = next(name for name in names if reader.shapes.get(name) != engine.shapes.get(name))
    saved, mine = reader.shapes.get(name), engine.shapes.get(name)
    raise UserError(
        f"{folder}: {name} is {list(saved) if saved else 'absent'} there and {list(mine) if mine else 'absent'} "
        "in the recipe's model; give the same model, or start in another output folder"
    )


def restore_weights(engine: Engine, reader: FragmentReader, optimizer_steps: int) -> None:
    """Read masters and moments into this rank's fragments, and the copies that forward uses from the masters."""
    if optimizer_steps:
        engine.create_moments(optimizer_steps)
    for name, fragment in engine.fragments():
        fragment.master.copy_(reader.read(MASTER, name, fragment.start, fragment.length))
        for kind in MOMENTS if optimizer_steps else ():
            fragment.moments[kind].copy_(reader.read(kind, name, fragment.start, fragment.length))
    for name in engine.shapes:
        engine.load_working_copy(name, partial(reader.read, MASTER, name))


def restore_scorer(pruner: Pruner, engine: Engine, reader: FragmentReader) -> None:
    """Give the scorer back what it remembered, cut for this rank's parts."""
    for kind in pruner.scorer.kinds():
        for name in pruner.masks:
            part = engine.part(name)
            if part is not None and reader.has(SCORER + kind, name):
                values = reader.read(SCORER + kind, name, part.start, part.master.numel())
                pruner.scorer.load_tensor(kind, part, values.to(engine.device))


def restore_random_states(reader: FragmentReader, rank: int, same_world: bool) -> None:
    """Continue this rank's generators; on another number of ranks they stay as seeded for this rank."""
    if not same_world:
        return
    states = reader.of_rank(rank)
    torch.set_rng_state(states["random_cpu"])
    if "random_cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["random_cuda"])
