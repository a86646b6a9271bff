"""The weights that a run prunes, found in a model without memory and checked before anything starts."""

from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from sparse_pretrain.config.pruning import CoupledStructure, PruningSection
from sparse_pretrain.models.coupled import coupled_sets
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.plan import PruningPlan, plan_pruning
from sparse_pretrain.pruning.structures.coupled import CoupledSet


@dataclass(frozen=True)
class Prunable:
    """What a run prunes; empty when it does not.

    Attributes:
        shapes: of the prunable weights, in the model's order.
        coupled: heads and channels among them, where the recipe prunes those.
        plan: which of them get masks, and how many zeros.
    """

    shapes: dict[str, torch.Size] = field(default_factory=dict)
    coupled: list[CoupledSet] = field(default_factory=list)
    plan: PruningPlan = field(default_factory=lambda: PruningPlan(0, 0, ()))


def find_prunable(section: PruningSection | None, student: PreTrainedModel) -> Prunable:
    """Find what the recipe's pruning section means in this model.

    Args:
        section: the recipe's; None when it does not prune.
        student: whole or on the meta device, not yet partitioned.

    Raises:
        UserError: a pattern finds nothing, the structure does not exist here, a scorer is not installed.
    """
    if section is None:
        return Prunable()
    weights = prunable_weights(student, section.include, section.exclude)
    shapes = {name: weight.shape for name, weight in weights.items()}
    coupled: list[CoupledSet] = []
    if isinstance(section.structure, CoupledStructure):
        coupled = coupled_sets(student, shapes, section.structure.of)
    return Prunable(shapes, coupled, plan_pruning(section, shapes, coupled))
