"""Magnitude with the weight decay undone that a weight suffered while it was pruned."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.scorers.base import BaseScorer
from sparse_pretrain.pruning.scorers.memory import PartMemory

KEPT = math.inf


class UndecayedMagnitude(BaseScorer):
    """|w| x exp(D(now) - D(when w was pruned)) for pruned weights, |w| for kept ones.

    A pruned weight's dense master gets no gradient, but decoupled weight decay (Loshchilov & Hutter 2019)
    multiplies it by (1 - lr x decay) at every step: the longer it is pruned, the less its chance to come
    back, whatever its value was. With D the sum of -log(1 - lr x decay) over all steps so far, the
    product of those factors is exp(D(pruned) - D(now)), and the score divides by it.

    What Adam's momentum still moves a weight by just after it was pruned is not undone.

    Memory: D, one float64; D when it was pruned, one float32 a weight, infinity for kept weights.
    It is made at the first mask update: before, no weight was ever pruned.
    """

    def __init__(self) -> None:
        self._decay = 0.0
        self._pruned_at = PartMemory("pruned_at_decay")

    def after_step(self, learning_rate: float, weight_decay: float) -> None:
        """Add one step's decay to D.

        Raises:
            UserError: the decay would turn weights around.
        """
        share = learning_rate * weight_decay
        if share >= 1:
            raise UserError(
                "pruning.scorer.exclude_weight_decay: learning rate x weight_decay must be below 1, "
                f"is {learning_rate:g} x {weight_decay:g}"
            )
        self._decay -= math.log1p(-share)

    def score(self, part: Part) -> Tensor:
        """Return |w| as it would be without the decay since it was pruned."""
        pruned_at = self._pruned_at.find(part)
        if pruned_at is None:
            return part.master.abs()
        # A kept weight has -infinity here, cut to 0, and exp(0) is 1: its magnitude stays bit for bit.
        since = pruned_at.neg().add_(self._decay).clamp_(min=0)
        return since.exp_().mul_(part.master).abs_()

    def after_update(self, part: Part, keep: Tensor) -> None:
        """Remember D for the weights that were just pruned; forget it of those that came back."""
        pruned_at = self._pruned_at.find(part)
        if pruned_at is None:
            pruned_at = self._pruned_at.create(part, KEPT)
        # D only grows: a weight pruned earlier keeps its lower value.
        pruned_at.clamp_(max=self._decay).masked_fill_(keep, KEPT)

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        """Yield D at pruning of every part."""
        return self._pruned_at.tensors()

    def load_tensor(self, kind: str, part: Part, values: Tensor) -> None:
        """Take D at pruning back."""
        self._pruned_at.load(kind, part, values)

    def kinds(self) -> tuple[str, ...]:
        """Return the one kind."""
        return (self._pruned_at.kind,)

    def state_dict(self) -> dict[str, Any]:
        """Return D."""
        return {"decay": self._decay}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take D back."""
        self._decay = float(state["decay"])
