"""What of a run has memory: fragments of weights, random-number states, and everything small."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_pretrain.checkpoint.shards import MASTER, Piece
from sparse_pretrain.training.provenance import versions

if TYPE_CHECKING:
    from sparse_pretrain.training.trainer import Trainer

# Kinds of fragments that hold a scorer's memory begin with this: they cannot be taken for weights.
SCORER = "scorer."


def pieces(trainer: "Trainer") -> Iterator[Piece]:
    """Yield this rank's fragments, views of live memory: masters, moments, the scorer's memory."""
    for name, fragment in trainer.engine.fragments():
        yield Piece(MASTER, name, fragment.start, fragment.master)
        for kind, moment in fragment.moments.items():
            yield Piece(kind, name, fragment.start, moment)
    if trainer.pruner is not None:
        for kind, name, start, tensor in trainer.pruner.scorer.tensors():
            yield Piece(SCORER + kind, name, start, tensor)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's generators (dropout draws from them); nothing else here is stateful."""
    states = {"random_cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random_cuda"] = torch.cuda.get_rng_state(device)
    return states


def shared_state(trainer: "Trainer", teacher: str | None) -> dict[str, Any]:
    """Return what all ranks have in common and is small: counters, positions, the recipe.

    Args:
        trainer: the run.
        teacher: identity of the teachers' weights; they are in no checkpoint.
    """
    pruner = trainer.pruner
    return {
        "step": trainer.step,
        "world_size": trainer.world.size,
        "stage": trainer.engine.stage,
        "optimizer_steps": trainer.engine.optimizer_steps,
        "loss_scale": trainer.engine.loss_scale_state(),
        "loader": trainer.loader.state_dict(),
        "pruner": pruner.state_dict() if pruner is not None else None,
        "teacher": teacher,
        "guard": trainer.guard.state_dict(),
        "metrics": dict(trainer.metrics),
        "evaluated_at": trainer.evaluated_at,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "versions": versions(),
    }
