"""First-order score: weights that training moves towards zero go first (Sanh et al. 2020)."""

from collections.abc import Iterator

from torch import Tensor

from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.scorers.base import BaseScorer
from sparse_pretrain.pruning.scorers.memory import PartMemory


class Movement(BaseScorer):
    """S = -sum of gradient x weight over the optimizer steps since the last mask update.

    Movement pruning, section 3, without its learning rate (a constant factor within a window does not
    change the order). Gradients are those of the dense weight (straight through), so that pruned weights
    move, too. Scores have both signs: high where training pushes a weight away from zero.

    An update without any step to look back at (at step 0, or right after another one) has nothing to go
    by: all-zero scores would prune by index. It uses |w| instead, for all weights alike.

    Memory: S, one float32 a weight, from the first step of a window until the update that ends it.
    """

    needs_gradients = True

    def __init__(self) -> None:
        self._sum = PartMemory("movement")

    def observe(self, part: Part, gradient: Tensor) -> None:
        """Add one step's -gradient x weight."""
        total = self._sum.find(part)
        if total is None:
            total = self._sum.create(part, 0.0)
        total.addcmul_(gradient, part.master, value=-1)

    def score(self, part: Part) -> Tensor:
        """Return S; |w| where no step was observed."""
        total = self._sum.find(part)
        return part.master.abs() if total is None else total.clone()

    def after_update(self, part: Part, keep: Tensor) -> None:
        """Begin a new window."""
        self._sum.forget(part)

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield S of every part; nothing between an update and the next step."""
        return self._sum.tensors()

    def load_tensor(self, kind: str, part: Part, values: Tensor) -> None:
        """Take S back."""
        self._sum.load(kind, part, values)

    def kinds(self) -> tuple[str, ...]:
        """Return the one kind."""
        return (self._sum.kind,)
