"""The training objective: weighted sums over tokens, divided by global counts."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.distillation.losses import distillation_loss, masked_language_loss, next_sentence_loss
from sparse_pretrain.models.pretraining import Predictions


class Losses(NamedTuple):
    """This micro-batch's shares of the global losses: over ranks and micro-batches they add up to them."""

    total: Tensor
    mlm: Tensor
    next_sentence: Tensor
    distillation: Tensor


class Objective:
    """mlm_weight x (MLM + NSP) + kd_weight x KD, or MLM + NSP alone without a teacher."""

    def __init__(self, section: DistillationSection | None) -> None:
        self._section = section

    def __call__(
        self, student: Predictions, teacher: Predictions | None, batch: Batch, totals: Counts
    ) -> Losses:
        """Return the losses of one micro-batch.

        Args:
            student: with gradient.
            teacher: without; None when there is no distillation.
            batch: the micro-batch.
            totals: counts over the **global** batch (every rank, every micro-batch). Dividing by these
                instead of by local counts makes the trajectory independent of the number of ranks.
        """
        zero = torch.zeros((), device=student.tokens.device)
        mlm = masked_language_loss(student.tokens, batch.labels) / max(1, totals.predicted)
        relation = zero
        if student.next_sentence is not None and batch.next_sentence_labels is not None:
            relation = next_sentence_loss(student.next_sentence, batch.next_sentence_labels) / totals.rows
        if self._section is None or teacher is None:
            return Losses(mlm + relation, mlm.detach(), relation.detach(), zero)
        section = self._section
        follow = distillation_loss(student.tokens, teacher.tokens, section.temperature) / totals.real
        total = section.mlm_weight * (mlm + relation) + section.kd_weight * follow
        return Losses(total, mlm.detach(), relation.detach(), follow.detach())
