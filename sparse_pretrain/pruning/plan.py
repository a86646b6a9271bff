"""What a recipe's pruning section means for given weights, before anything is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.allocation import Scope, budget, scopes
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.structures.build import build_structure
from sparse_pretrain.pruning.structures.coupled import CoupledSet


@dataclass(frozen=True)
class PruningPlan:
    """The weights under masks, and how they compete.

    Attributes:
        weights: how many weights have masks.
        matrices: in how many matrices.
        scopes: with their final shares.
    """

    weights: int
    matrices: int
    scopes: Sequence[Scope]

    @property
    def zeros(self) -> int:
        """Weights that may be pruned in the end; groups of several weights miss it by less than one a scope."""
        return sum(budget(scope, scope.final) for scope in self.scopes)


def plan_pruning(
    section: PruningSection, shapes: Mapping[str, torch.Size], coupled: Sequence[CoupledSet]
) -> PruningPlan:
    """Build structure, scopes and scorer once, so that what does not fit is known before a run starts.

    Args:
        section: the recipe's.
        shapes: of the prunable weights, in the model's order.
        coupled: heads and channels among them, where the structure needs them.

    Raises:
        UserError: a pattern finds nothing, the structure does not exist here, a scorer is not installed.
    """
    build_scorer(section.scorer)
    units = list(build_structure(section.structure, coupled).units(shapes))
    members = [member for unit in units for member in unit.members]
    sizes = {name: shapes[name].numel() for name in members}
    found = scopes(section.allocation, section.target_sparsity, units, sizes)
    return PruningPlan(sum(sizes.values()), len(sizes), found)
