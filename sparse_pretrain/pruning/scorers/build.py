"""From the recipe's section to the scorer it means."""

from sparse_pretrain.config.pruning import (
    CustomScorer,
    MagnitudeScorer,
    MovementScorer,
    RandomScorer,
    ScorerSection,
)
from sparse_pretrain.pruning.scorer import Scorer
from sparse_pretrain.pruning.scorers.entry_point import custom_scorer
from sparse_pretrain.pruning.scorers.magnitude import Magnitude
from sparse_pretrain.pruning.scorers.movement import Movement
from sparse_pretrain.pruning.scorers.random_order import RandomOrder
from sparse_pretrain.pruning.scorers.undecayed_magnitude import UndecayedMagnitude


def build_scorer(section: ScorerSection) -> Scorer:
    """Build the scorer of a recipe.

    Args:
        section: `pruning.scorer`.

    Raises:
        UserError: a custom scorer cannot be found or built.
    """
    match section:
        case MagnitudeScorer(exclude_weight_decay=True):
            return UndecayedMagnitude()
        case MagnitudeScorer():
            return Magnitude()
        case MovementScorer():
            return Movement()
        case RandomScorer():
            return RandomOrder(section.seed)
        case CustomScorer():
            return custom_scorer(section.name, section.options)
