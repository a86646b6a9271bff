"""How much a weight matters: what every scorer offers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """This rank's part of one weight: elements [start, start + length), flattened row-major.

    Attributes:
        name: the weight's name.
        start: index of the first element in the whole weight.
        master: float32 [length], a view of the optimizer's own memory; never written to by a scorer.
    """

    name: str
    start: int
    master: Tensor


class Scorer(Protocol):
    """Scores single weights, part by part, where the optimizer keeps them; nothing here communicates.

    A scorer with memory holds it in tensors of its parts' lengths, sharded like the optimizer's moments.
    They are saved in checkpoints and come back cut for another number of ranks. Memory of several
    numbers a weight (the rows of a block-diagonal Fisher matrix) is several kinds, one number each:
    whatever cut a checkpoint is read with, every number comes back to its weight.

    A score should depend on nothing but the weight's own history: then masks are the same on any number
    of ranks. One that looks at neighbours sees only those in its part, so that a block ends where a part
    does; `tests/pruning/test_second_order.py` shows such a scorer and what that means.

    `scorers.base.BaseScorer` offers every method but `score`, doing nothing.
    """

    @property
    def needs_gradients(self) -> bool:
        """Whether `observe` must be called; False spares the training step the work."""
        ...

    def observe(self, part: Part, gradient: Tensor) -> None:
        """See the gradient of one optimizer step, before pruned weights' gradients are set to zero.

        Args:
            part: before the update.
            gradient: averaged over the global batch, not clipped, [length], any float type.
        """
        ...

    def after_step(self, learning_rate: float, weight_decay: float) -> None:
        """An optimizer step with these settings is done."""
        ...

    def score(self, part: Part) -> Tensor:
        """Return a new tensor, float32 [length], without NaN; the lowest are pruned first."""
        ...

    def after_update(self, part: Part, keep: Tensor) -> None:
        """The masks were updated; `keep`, bool [length], is this part's new mask."""
        ...

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield memory to save: (kind, weight name, start, float32 [length]).

        A weight that nothing is known of yet may be left out, on all ranks or on none.
        """
        ...

    def load_tensor(self, kind: str, part: Part, values: Tensor) -> None:
        """Take back what `tensors` yielded, float32 [length], for a part that may have been cut differently.

        Called for every kind and part of which something was saved, on a scorer that has seen nothing yet.
        """
        ...

    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds that `tensors` may yield, without a slash; empty without memory."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-able rest of the memory, the same on every rank."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        ...
