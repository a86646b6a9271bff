"""Masked-language loss and distillation of the same logits in one pass, with one gradient.

Apart, each makes a gradient of the logits' size, and both are scaled and added: four more passes over
[positions, vocabulary].
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.losses import rows_per_block, softened


class TokenLosses(NamedTuple):
    """Sums over positions, fp32.

    Attributes:
        total: weighted, with gradient to the student's logits.
        mlm: cross-entropy of the predicted tokens, in nats; no gradient.
        distillation: T^2 KL, in nats; no gradient.
    """

    total: Tensor
    mlm: Tensor
    distillation: Tensor


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        weights: tuple[float, float],
        temperature: float,
        everywhere: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mlm_weight, kd_weight = weights
        # Half precision would lose small weights: there they come with what flows into the backward pass, the loss
        # scale included.
        ctx.late = kd_weight if student.dtype == torch.float16 else 1.0
        mlm_weight, kd_weight = mlm_weight / ctx.late, kd_weight / ctx.late
        mlm, follow = (torch.zeros((), dtype=torch.float32, device=student.device) for _ in range(2))
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(student) if everywhere else torch.zeros_like(student)
        for rows, inside, wanted in blocks(labels, rows_per_block(student), everywhere):
            mine = student[rows].float()
            log_student = torch.log_softmax(mine / temperature, dim=-1)
            log_teacher = torch.log_softmax(softened(teacher[rows], temperature), dim=-1)
            share = log_teacher.exp()
            follow += torch.dot(share.view(-1), log_teacher.sub_(log_student).view(-1))
            of_block = log_student.exp_().sub_(share).mul_(kd_weight * temperature)
            if len(wanted):
                log_share = torch.log_softmax(mine[inside], dim=-1)
                mlm -= log_share.gather(1, wanted).sum()
                ones = torch.ones_like(wanted, dtype=log_share.dtype)
                of_block[inside] += log_share.exp_().scatter_add_(1, wanted, -ones).mul_(mlm_weight)
            if gradient is not None:
                gradient[rows] = of_block.to(gradient.dtype)
        follow *= temperature**2
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(mlm, follow)
        return weights[0] * mlm + weights[1] * follow, mlm, follow

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        factor = upstream[0] * ctx.late
        # A pass saved where looking at the number costs nothing.
        if factor.device.type != "cpu" or float(factor) != 1.0:
            gradient.mul_(factor)
        return gradient, None, None, None, None, None


class Block(NamedTuple):
    """Positions that are worked on together.

    Attributes:
        rows: which: int64 numbers, or a slice of all.
        inside: int64, which of them are predicted, counted in the block.
        wanted: int64 [predicted, 1], their labels.
    """

    rows: Tensor | slice
    inside: Tensor
    wanted: Tensor


def blocks(labels: Tensor, size: int, everywhere: bool) -> Iterator[Block]:
    """Cut positions into blocks: all of them, or the predicted ones.

    Args:
        labels: int64 [positions], `IGNORED` where nothing is predicted.
        size: positions of a block.
        everywhere: all of them.
    """
    predicted = labels != IGNORED
    chosen = predicted.nonzero().squeeze(1)
    if not everywhere:
        for rows in chosen.split(size):
            yield Block(rows, torch.arange(len(rows), device=labels.device), labels[rows].unsqueeze(1))
        return
    # Predicted positions before each block, and before the end.
    counts = [0, *predicted.cumsum(0)[size - 1 :: size].tolist(), len(chosen)]
    for first, before, after in zip(range(0, len(labels), size), counts, counts[1:], strict=False):
        mine = chosen[before:after]
        yield Block(slice(first, first + size), mine - first, labels[mine].unsqueeze(1))


def token_losses(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    mlm_weight: float,
    kd_weight: float,
    temperature: float,
    everywhere: bool,
) -> TokenLosses:
    """Return mlm_weight x cross-entropy + kd_weight x T^2 KL(softmax(teacher / T) || softmax(student / T)).

    What `losses.masked_language_loss` and `losses.distillation_loss` return apart.

    Args:
        student: logits [positions, vocabulary], any float type.
        teacher: of the same shape; no gradient flows to it.
        labels: int64 [positions], `IGNORED` where nothing is predicted.
        mlm_weight: of the predicted tokens' sum.
        kd_weight: of distillation's sum, above 0.
        temperature: T > 0.
        everywhere: distil at all positions; else at the predicted ones.
    """
    found = _TokenLosses.apply(student, teacher, labels, (mlm_weight, kd_weight), temperature, everywhere)  # type: ignore[no-untyped-call]
    return TokenLosses(*found)
