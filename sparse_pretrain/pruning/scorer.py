"""How much a weight matters."""

from torch import Tensor


def magnitude(weight: Tensor) -> Tensor:
    """Return |w|, float32 of the weight's shape (magnitude pruning, Han et al. 2015)."""
    return weight.abs()
