"""Everything of a run that has memory, to a checkpoint and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader, write_rank
from sparse_pretrain.checkpoint.store import MODEL, STATE, WEIGHTS, save_checkpoint
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.verify import check_finite
from sparse_pretrain.training.engine import MOMENTS, Engine
from sparse_pretrain.training.provenance import versions
from sparse_pretrain.training.trainer import Trainer

# Kinds of fragments that hold a scorer's memory begin with this: they cannot be taken for weights.
SCORER = "scorer."


class Snapshots:
    """Saves and restores a trainer; `model_folder` writes config and tokenizer beside the weights."""

    def __init__(self, checkpoints: Path, teacher_identity: str | None, tokenizer: Any, config: Any) -> None:
        self._checkpoints = checkpoints
        self._teacher_identity = teacher_identity
        self._tokenizer = tokenizer
        self._config = config

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the trainer's present step together with all ranks.

        Raises:
            BrokenWeightsError: a weight is NaN or does not obey its mask; nothing is written.
        """
        check_finite(trainer.engine.parameters, trainer.engine)
        if trainer.pruner is not None:
            trainer.pruner.verify()
        folder = save_checkpoint(
            self._checkpoints,
            trainer.step,
            trainer.world,
            write_shard=lambda path: write_rank(
                path, pieces(trainer), trainer.engine.shapes, random_states(trainer.world.device)
            ),
            write_shared=lambda path: self._write_shared(trainer, path),
            keep_last=trainer.recipe.checkpoint.keep_last,
        )
        trainer.announce_checkpoint(folder)

    def _write_shared(self, trainer: Trainer, folder: Path) -> None:
        pruner = trainer.pruner
        if pruner is not None:
            pruner.masks.save(folder / MASK_FILE)
        self._config.save_pretrained(folder / MODEL)
        self._tokenizer.save_pretrained(folder / MODEL)
        write_json(
            folder / STATE,
            {
                "step": trainer.step,
                "world_size": trainer.world.size,
                "optimizer_steps": trainer.engine.optimizer_steps,
                "loss_scale": trainer.engine.loss_scale_state(),
                "loader": trainer.loader.state_dict(),
                "pruner": pruner.state_dict() if pruner is not None else None,
                "teacher": self._teacher_identity,
                "guard": trainer.guard.state_dict(),
                "metrics": trainer.metrics,
                "recipe": trainer.recipe.model_dump(mode="json"),
                "versions": versions(),
            },
        )

    def restore(self, trainer: Trainer, folder: Path) -> None:
        """Bring a freshly built trainer to where the checkpoint was saved.

        Any number of ranks and any ZeRO stage may read it; with the same number of ranks the run goes
        on bit for bit.

        Raises:
            UserError: the checkpoint belongs to another model, other data, or another teacher.
        """
        state = read_json(folder / STATE)
        reader = FragmentReader(sorted((folder / WEIGHTS).iterdir()))
        check_same_model(trainer.engine, reader, folder)
        if state["teacher"] != self._teacher_identity:
            raise UserError(
                f"distillation.teacher: {folder} was trained with another teacher; give the same one, or "
                "start in another output folder"
            )
        trainer.loader.load_state_dict(state["loader"])
        restore_weights(trainer.engine, reader, state["optimizer_steps"])
        trainer.engine.load_loss_scale_state(state["loss_scale"])
        if (trainer.pruner is None) != (state["pruner"] is None):
            raise UserError(f"pruning: {folder} was saved {'without' if trainer.pruner else 'with'} pruning")
        if trainer.pruner is not None:
            try:
                trainer.pruner.load_state_dict(state["pruner"], MaskSet.load(folder / MASK_FILE))
            except (ValueError, KeyError) as error:
                raise UserError(f"{folder}: pruning state: {error}") from None
            restore_scorer(trainer.pruner, trainer.engine, reader)
            check_will_freeze(trainer.pruner, int(state["step"]), folder)
            trainer.engine.mask_working_copies(trainer.pruner.masks)
        restore_random_states(reader, trainer.world.rank, trainer.world.size == state["world_size"])
        trainer.metrics = state["metrics"]
        trainer.guard.load_state_dict(state["guard"])
        trainer.last_checkpoint = folder
        trainer.step = int(state["step"])


def check_will_freeze(pruner: Pruner, step: int, folder: Path) -> None:
    """Refuse a schedule whose last update has passed while the saved masks are still open."""
    if not pruner.frozen and step >= pruner.schedule.last_update:
        raise UserError(
            f"pruning.end: the recipe's last mask update is after step {pruner.schedule.last_update}, {folder} is at "
            f"step {step} and its masks are not frozen yet: they never would; give a later pruning.end"
        )


def pieces(trainer: Trainer) -> Iterator[tuple[str, str, int, Tensor]]:
    """Yield this rank's fragments as `write_rank` takes them: masters, moments, the scorer's memory."""
    for name, fragment in trainer.engine.fragments():
        yield MASTER, name, fragment.start, fragment.master
        for kind, moment in fragment.moments.items():
            yield kind, name, fragment.start, moment
    if trainer.pruner is not None:
        for kind, name, start, tensor in trainer.pruner.scorer.tensors():
            yield SCORER + kind, name, start, tensor


def check_same_model(engine: Engine, reader: FragmentReader, folder: Path) -> None:
    """Refuse weights of another architecture before anything is overwritten."""
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
    """Read masters and moments into this rank's fragments, and the working copies from the masters."""
    if optimizer_steps:
        engine.create_moments(optimizer_steps)
    for name, fragment in engine.fragments():
        fragment.master.copy_(reader.read(MASTER, name, fragment.start, fragment.length))
        for kind in MOMENTS if optimizer_steps else ():
            fragment.moments[kind].copy_(reader.read(kind, name, fragment.start, fragment.length))
    for name in engine.shapes:
        engine.load_working_copy(name, reader.whole(MASTER, name))


def restore_scorer(pruner: Pruner, engine: Engine, reader: FragmentReader) -> None:
    """Give the scorer back what it remembered, cut for this rank's parts."""
    for kind in pruner.scorer.kinds():
        for name in pruner.masks:
            part = engine.part(name)
            if part is not None and reader.has(SCORER + kind, name):
                values = reader.read(SCORER + kind, name, part.start, part.master.numel())
                pruner.scorer.load_tensor(kind, part, values.to(engine.device))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators (dropout draws from them); nothing else here is stateful."""
    states = {"random_cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random_cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(reader: FragmentReader, rank: int, same_world: bool) -> None:
    """Continue this rank's generators; on another number of ranks they stay as seeded for this rank."""
    if not same_world:
        return
    states = reader.of_rank(rank)
    torch.set_rng_state(states["random_cpu"])
    if "random_cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["random_cuda"])
