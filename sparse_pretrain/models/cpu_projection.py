"""The projection on the vocabulary on CPUs: its weight's gradient in the layout in which it is kept.

torch computes that gradient transposed; to add 30,522 x 768 such numbers to the others takes one core a fourteenth of
a step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return F.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        (logits,) = upstream
        of_hidden, of_weight, of_bias = ctx.needs_input_grad
        return (
            logits @ weight if of_hidden else None,
            logits.t() @ hidden if of_weight else None,
            logits.sum(dim=0) if of_bias else None,
        )


class CpuProjection(nn.Linear):
    """`nn.Linear` for hidden states [positions, width]."""

    def forward(self, input: Tensor) -> Tensor:
        """Return logits [positions, vocabulary]."""
        if input.ndim != 2 or not torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        return _Projection.apply(input, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def quicken_projection(model: PreTrainedModel) -> None:
    """Let a model's projection on the vocabulary compute its gradient this way, in place."""
    projection = model.get_output_embeddings()
    if type(projection) is nn.Linear:
        projection.__class__ = CpuProjection
