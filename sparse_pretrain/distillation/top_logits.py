"""The teacher's answer cut down to its k most likely tokens and the probability mass of all others."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_pretrain.distillation.losses import rows_per_block, softened


class TopLogits(NamedTuple):
    """The k highest logits of every position, highest first.

    Attributes:
        ids: int64 [positions, k], token ids.
        logits: fp16 [positions, k], minus the position's highest logit: softmax ignores the shift, and
            likely tokens keep the most digits.
        log_rest: fp32 [positions], log of the probability of all other tokens at the temperature that
            they were made with; -inf where there are none.
    """

    ids: Tensor
    logits: Tensor
    log_rest: Tensor


def top_logits(logits: Tensor, k: int, temperature: float) -> TopLogits:
    """Cut logits [positions, vocabulary] down to the `k` highest, block by block."""
    parts = []
    for block in logits.split(rows_per_block(logits)):
        soft = softened(block, temperature)
        whole = torch.logsumexp(soft, dim=-1)
        highest, ids = block.float().topk(k, dim=-1)
        rest = soft.scatter_(1, ids, float("-inf")).logsumexp(dim=-1) - whole
        parts.append(TopLogits(ids, (highest - highest[:, :1]).half(), rest))
    return TopLogits(*(torch.cat(column) for column in zip(*parts, strict=True)))


def top_shares(teacher: TopLogits, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log probabilities of the k tokens, fp32 [positions, k], and probabilities of the rest [positions].

    Together they are a whole distribution: rounding of the stored logits is shared out.
    """
    rest = teacher.log_rest.exp()
    inside = torch.log_softmax(softened(teacher.logits, temperature), dim=-1)
    return inside + torch.log1p(-rest).unsqueeze(1), rest


class _TopCrossEntropySum(torch.autograd.Function):
    """Sum over rows of T^2 KL(teacher || student) over k tokens and one bucket for all others."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, ids: Tensor, logits: Tensor, log_rest: Tensor, temperature: float
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        block = rows_per_block(student)
        for first in range(0, student.shape[0], block):
            rows = slice(first, first + block)
            teacher = TopLogits(ids[rows], logits[rows], log_rest[rows])
            log_top, rest = top_shares(teacher, temperature)
            log_student = torch.log_softmax(softened(student[rows], temperature), dim=-1)
            top = log_top.exp()
            total += torch.dot(top.view(-1), (log_top - log_student.gather(1, teacher.ids)).view(-1))
            others = log_student.scatter(1, teacher.ids, float("-inf"))
            log_others = others.logsumexp(dim=-1)
            # 0 log 0 = 0: nothing is left beside the k tokens.
            some = rest > 0
            distance = teacher.log_rest - log_others
            total += torch.where(some, rest * distance, 0.0).sum()
            if gradient is not None:
                # d/dz = T (student - target); the rest's target keeps the student's own proportions.
                shift = torch.where(some, distance, float("-inf"))
                target = others.add_(shift.unsqueeze(1)).exp_().scatter_(1, teacher.ids, top)
                gradient[rows] = log_student.exp_().sub_(target).mul_(temperature)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total * temperature**2

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream[0]), None, None, None, None


def top_distillation_loss(student: Tensor, teacher: TopLogits, temperature: float) -> Tensor:
    """Return the summed T^2 KL over positions, in nats, of k + 1 outcomes: k tokens, or any other.

    With k = vocabulary it is `losses.distillation_loss`; with fewer it is smaller, for inside the rest
    the student is free.

    Args:
        student: logits [positions, vocabulary].
        teacher: of the same positions.
        temperature: the one that `teacher` was made with.
    """
    return _TopCrossEntropySum.apply(student, *teacher, temperature)  # type: ignore[no-any-return, no-untyped-call]
