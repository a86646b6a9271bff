"""Squared distances of hidden states and attention maps: sums over real tokens, computed in blocks of rows.

Only the difference is kept, in the student's own precision: no fp32 copy of a whole hidden state or attention
map exists. Weights (1 / width, 1 / (heads x keys)) come in the backward pass together with what flows into it,
the loss scale included: weighted earlier, most of an fp16 gradient would vanish.
"""

from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.distillation.losses import rows_per_block


class _SquaredErrorSum(torch.autograd.Function):
    """Sum over rows of weight x |student - teacher|^2."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        kept = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        block = rows_per_block(student)
        for first in range(0, student.shape[0], block):
            rows = slice(first, first + block)
            difference = student[rows].float() - teacher[rows].float()
            if kept is not None:
                kept[rows] = difference
            weighted = difference * weights[rows, None]
            total += torch.dot(difference.view(-1), weighted.view(-1))
        if kept is not None:
            ctx.save_for_backward(kept, weights)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        # In place: the difference turns into the gradient.
        gradient, weights = ctx.saved_tensors
        factors = weights * (2 * upstream[0])
        block = rows_per_block(gradient)
        for first in range(0, gradient.shape[0], block):
            rows = slice(first, first + block)
            gradient[rows] = gradient[rows].float().mul_(factors[rows, None])
        return gradient, None, None


def squared_error(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over rows of weight x |student - teacher|^2, in fp32.

    Args:
        student: [rows, width], any float type.
        teacher: of the same shape; no gradient flows to it.
        weights: fp32 [rows].
    """
    return _SquaredErrorSum.apply(student, teacher, weights)  # type: ignore[no-any-return, no-untyped-call]


def hidden_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the sum over real tokens of the mean squared difference over the hidden width.

    TinyBERT (Jiao et al. 2020), eq. 8 and, of embeddings, eq. 9; a projection was applied before.

    Args:
        student: [rows, length, width].
        teacher: of the same shape.
        attention_mask: int64 [rows, length], 1 at real tokens; None when all are.
    """
    real = real_tokens(attention_mask, student)
    width = student.shape[-1]
    return squared_error(student.reshape(-1, width), teacher.reshape(-1, width), real.reshape(-1).div(width))


def attention_loss(
    student: Tensor, teacher: Tensor, attention_mask: Tensor | None, keys: Tensor | None = None
) -> Tensor:
    """Return the sum over real query tokens of the mean squared difference over heads and real keys.

    TinyBERT (Jiao et al. 2020), eq. 7, on probabilities instead of scores. With different numbers of
    heads, the means over heads are compared.

    Args:
        student: probabilities [rows, heads, queries, keys]; padded keys have probability 0.
        teacher: the same, perhaps with another number of heads.
        attention_mask: int64 [rows, length], 1 at real tokens; None when all are.
        keys: [rows, length], how many real keys each query has; None: its row's real tokens.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
    rows, heads, length, _ = student.shape
    real = real_tokens(attention_mask, student[:, 0])
    weights = real / (heads * (real.sum(dim=1, keepdim=True) if keys is None else keys))
    weights = weights[:, None, :].expand(rows, heads, length).reshape(-1)
    return squared_error(student.reshape(-1, length), teacher.reshape(-1, length), weights)


def real_tokens(attention_mask: Tensor | None, like: Tensor) -> Tensor:
    """Return fp32 [rows, length]: 1 at real tokens, 0 at padding; `like` is [rows, length, ...]."""
    if attention_mask is None:
        return torch.ones(like.shape[:2], dtype=torch.float32, device=like.device)
    return attention_mask.to(torch.float32)
