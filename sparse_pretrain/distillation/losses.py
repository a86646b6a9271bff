"""Sums over tokens; the objective divides them by global counts.

Both token losses work through the vocabulary in blocks of rows and keep only the gradient, in the
logits' own precision: no fp32 copy of a [positions, 30,522] matrix ever exists.
"""

from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.data.masking import IGNORED

# Values per fp32 block. On a CPU a block must stay in the core's cache: 4 rows of BERT's vocabulary are
# 2.9 x faster than 256. A GPU wants enough work per kernel.
CPU_BLOCK_VALUES = 2**17
GPU_BLOCK_VALUES = 2**24


def rows_per_block(logits: Tensor) -> int:
    """Return how many rows of `logits` [positions, vocabulary] make one block on its device."""
    values = CPU_BLOCK_VALUES if logits.device.type == "cpu" else GPU_BLOCK_VALUES
    return max(1, values // logits.shape[1])


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Return a fresh fp32 copy of logits / temperature."""
    return logits.to(torch.float32, copy=True).div_(temperature)


class _CrossEntropySum(torch.autograd.Function):
    """Sum of -log softmax(logits)[label] over rows whose label is not `IGNORED`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        wanted = torch.nonzero(labels != IGNORED).squeeze(1)
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        for rows in wanted.split(rows_per_block(logits)):
            block = torch.log_softmax(logits[rows].float(), dim=-1)
            chosen = labels[rows].unsqueeze(1)
            total -= block.gather(1, chosen).sum()
            if gradient is not None:
                block = block.exp_()
                block.scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=block.dtype))
                gradient[rows] = block.to(logits.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream[0]), None


class _SoftCrossEntropySum(torch.autograd.Function):
    """Sum over rows of T^2 KL(softmax(teacher / T) || softmax(student / T))."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        block = rows_per_block(student)
        for first in range(0, student.shape[0], block):
            rows = slice(first, first + block)
            log_student = torch.log_softmax(softened(student[rows], temperature), dim=-1)
            log_teacher = torch.log_softmax(softened(teacher[rows], temperature), dim=-1)
            share = log_teacher.exp()
            total += torch.dot(share.view(-1), log_teacher.sub_(log_student).view(-1))
            if gradient is not None:
                gradient[rows] = log_student.exp_().sub_(share).mul_(temperature)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream[0]), None, None


def masked_language_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy, in nats, of the predicted tokens.

    Args:
        logits: [positions, vocabulary], any float type.
        labels: int64 [positions], `IGNORED` where nothing is predicted.
    """
    return _CrossEntropySum.apply(logits, labels)  # type: ignore[no-any-return, no-untyped-call]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the summed T^2 KL(softmax(teacher/T) || softmax(student/T)) over positions, in nats.

    Hinton et al. 2015, section 2; the factor T^2 keeps the gradient's size independent of T.

    Args:
        student: logits [positions, vocabulary].
        teacher: logits of the same shape; no gradient flows to them.
        temperature: T > 0.
    """
    return _SoftCrossEntropySum.apply(student, teacher, temperature)  # type: ignore[no-any-return, no-untyped-call]


def next_sentence_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed cross-entropy of next-sentence prediction: logits [rows, 2], labels int64 [rows]."""
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum")
