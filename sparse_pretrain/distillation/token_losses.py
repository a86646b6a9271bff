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
        chosen = (labels != IGNORED).nonzero().squeeze(1)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(student) if everywhere else torch.zeros_like(student)
        size = rows_per_block(student)
        for rows in parts(len(student), size) if everywhere else chosen.split(size):
            log_student = torch.log_softmax(softened(student[rows], temperature), dim=-1)
            log_teacher = torch.log_softmax(softened(teacher[rows], temperature), dim=-1)
            share = log_teacher.exp()
            follow += torch.dot(share.view(-1), log_teacher.sub_(log_student).view(-1))
            if gradient is not None:
                of_rows = log_student.exp_().sub_(share).mul_(kd_weight * temperature)
                # A slice takes any precision; converted before, it would be written twice.
                gradient[rows] = of_rows if everywhere else of_rows.to(gradient.dtype)
        # Few rows, once more: to keep theirs would push the others' out of a core's cache.
        for rows in chosen.split(size):
            share = torch.log_softmax(student[rows].float(), dim=-1)
            wanted = labels[rows].unsqueeze(1)
            mlm -= share.gather(1, wanted).sum()
            if gradient is not None:
                share = share.exp_()
                share.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=share.dtype))
                gradient[rows] += share.mul_(mlm_weight)
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


def parts(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows into slices of `size`."""
    return (slice(first, first + size) for first in range(0, count, size))


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
