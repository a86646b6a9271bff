"""A scorer that sees and remembers nothing: what the others start from."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from sparse_pretrain.pruning.scorer import Part


class BaseScorer:
    """Every method of `Scorer` but `score`, without memory; subclasses replace what they need."""

    needs_gradients: bool = False

    def observe(self, part: Part, gradient: Tensor) -> None:
        """Ignore a gradient."""

    def after_step(self, learning_rate: float, weight_decay: float) -> None:
        """Ignore a step."""

    def after_update(self, part: Part, keep: Tensor) -> None:
        """Ignore new masks."""

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield nothing."""
        return iter(())

    def load_tensor(self, kind: str, part: Part, values: Tensor) -> None:
        """Refuse what was never saved."""
        raise ValueError(f"{type(self).__name__} keeps nothing called {kind!r}")

    def kinds(self) -> tuple[str, ...]:
        """Return no kinds."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing back."""
