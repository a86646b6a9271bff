"""One number a weight, kept for this rank's parts only."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_pretrain.pruning.scorer import Part


class PartMemory:
    """Float32 tensors [length] by part, made when they are first needed.

    A rank's parts never change while it runs; name, start and length identify one.
    """

    def __init__(self, kind: str) -> None:
        """Start empty; `kind` names the memory in checkpoints."""
        self.kind = kind
        self._values: dict[tuple[str, int, int], Tensor] = {}

    def find(self, part: Part) -> Tensor | None:
        """Return a part's own tensor; None when it has none (yet)."""
        return self._values.get(_key(part))

    def create(self, part: Part, value: float) -> Tensor:
        """Give a part a tensor filled with `value`."""
        values = torch.full_like(part.master, value, dtype=torch.float32)
        self._values[_key(part)] = values
        return values

    def forget(self, part: Part) -> None:
        """Drop a part's tensor."""
        self._values.pop(_key(part), None)

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield (kind, weight name, start, tensor) of every part, as `Scorer.tensors` does."""
        for (name, start, _), values in self._values.items():
            yield self.kind, name, start, values

    def load(self, kind: str, part: Part, values: Tensor) -> None:
        """Take a part's values from a checkpoint.

        Raises:
            ValueError: they are of another kind or length.
        """
        if kind != self.kind or values.shape != part.master.shape:
            raise ValueError(
                f"{kind}/{part.name}: {list(values.shape)} values do not fit {self.kind} of "
                f"{list(part.master.shape)} weights from {part.start} on"
            )
        self.create(part, 0.0).copy_(values)


def _key(part: Part) -> tuple[str, int, int]:
    return part.name, part.start, part.master.numel()
