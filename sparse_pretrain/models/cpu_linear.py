"""Linear layers on CPUs in bf16, where torch's product with a transposed matrix takes twice as long as without.

The gradient of a weight is such a product; here the transpose is made first. Of the vocabulary's projection it would
be too large for that: see `cpu_projection`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows transposed at a time: what is read stays in the core's nearest cache until all of it was.
BLOCK = 512
# Outputs of layers that are worth it; a larger one is a vocabulary.
LARGEST = 16_384


def transposed(matrix: Tensor) -> Tensor:
    """Return the transpose, contiguous: [rows, columns] to [columns, rows]."""
    turned = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    for first in range(0, len(matrix), BLOCK):
        turned[:, first : first + BLOCK].copy_(matrix[first : first + BLOCK].t())
    return turned


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        (of_output,) = upstream
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows = of_output.reshape(-1, of_output.shape[-1])
        return (
            of_output @ weight if of_input else None,
            transposed(rows) @ input.reshape(-1, input.shape[-1]) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


class CpuLinear(nn.Linear):
    """`nn.Linear` with a quicker gradient of its weight in bf16."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [..., outputs] of [..., inputs]."""
        if self.weight.dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        return _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-any-return, no-untyped-call]


def quicken_linear(model: nn.Module) -> None:
    """Let a model's linear layers compute their gradients this way, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features <= LARGEST:
            module.__class__ = CpuLinear
