"""The training objective: weighted sums over tokens, divided by global counts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.feature_losses import attention_loss, hidden_loss
from sparse_pretrain.distillation.losses import distillation_loss, masked_language_loss, next_sentence_loss
from sparse_pretrain.distillation.matching import HiddenPair, LayerPair, Match
from sparse_pretrain.distillation.token_losses import TokenLosses, token_losses
from sparse_pretrain.distillation.top_logits import TopLogits, top_distillation_loss
from sparse_pretrain.models.pretraining import Predictions

Answer = Predictions | TopLogits


class Parts(NamedTuple):
    """What distillation is made of, each part an unweighted mean over teachers (by their shares)."""

    logits: Tensor
    hidden: Tensor
    attention: Tensor
    embeddings: Tensor


class Losses(NamedTuple):
    """This micro-batch's shares of the global losses: over ranks and micro-batches they add up to them.

    Attributes:
        total: what is trained on, with gradient.
        mlm: mean over predicted tokens, in nats.
        next_sentence: mean over sequences, in nats.
        distillation: KD, the sum of weighted parts; the logits' mean where there is nothing else.
        parts: unweighted means.
        agreement: share of the predicted positions where the student's first choice is the teacher's;
            0 where it was not asked for.
    """

    total: Tensor
    mlm: Tensor
    next_sentence: Tensor
    distillation: Tensor
    parts: Parts
    agreement: Tensor

    def numbers(self) -> Tensor:
        """Return everything in one vector, for one sum over ranks; `read` names the numbers again."""
        flat = [self.total, self.mlm, self.next_sentence, self.distillation, *self.parts, self.agreement]
        return torch.stack([value.detach().float() for value in flat])


class GlobalLosses(NamedTuple):
    """`Losses` summed over ranks and micro-batches."""

    total: float
    mlm: float
    next_sentence: float
    distillation: float
    parts: dict[str, float]
    agreement: float

    @classmethod
    def read(cls, numbers: Sequence[float]) -> "GlobalLosses":
        """Name the numbers of a sum of `Losses.numbers`."""
        total, mlm, relation, follow, *parts, agreement = numbers
        return cls(total, mlm, relation, follow, dict(zip(Parts._fields, parts, strict=True)), agreement)


class Objective:
    """mlm_weight x (MLM + NSP) + kd_weight x KD, or MLM + NSP alone without a teacher.

    Args:
        section: the recipe's distillation; None without.
        matches: what is compared with each teacher beside logits; none: logits only.
    """

    def __init__(self, section: DistillationSection | None, matches: Sequence[Match] = ()) -> None:
        self._section = section
        self._matches = matches or (Match(),) * (len(section.teachers) if section is not None else 0)

    @property
    def part_names(self) -> tuple[str, ...]:
        """The parts of distillation that this run has."""
        section = self._section
        if section is None:
            return ()
        present = (section.logits_weight, section.hidden, section.attention, section.embeddings)
        return tuple(name for name, there in zip(Parts._fields, present, strict=True) if there)

    def __call__(
        self,
        student: Predictions,
        teachers: Sequence[Answer],
        batch: Batch,
        totals: Counts,
        temperature: float = 1.0,
        agreement: bool = False,
    ) -> Losses:
        """Return the losses of one micro-batch.

        Args:
            student: with gradient.
            teachers: without, in the recipe's order; empty when there is no distillation.
            batch: the micro-batch; one that counts nothing (`data.batch.without_terms`) has losses of 0.
            totals: counts over the **global** batch (every rank, every micro-batch). Dividing by these
                instead of by local counts makes the trajectory independent of the number of ranks.
            temperature: of the logits' distillation at this step.
            agreement: measure it (a pass over the logits of the predicted positions).
        """
        zero = torch.zeros((), device=student.tokens.device)
        if not batch.counts.sequences:
            nothing = Parts(zero, zero, zero, zero)
            return Losses(zero_of(student), zero, zero, zero, nothing, zero)
        together = self._together(student, teachers, batch, totals, temperature)
        if together is None:
            mlm = masked_language_loss(student.tokens, batch.labels) / max(1, totals.predicted)
        else:
            mlm = together.mlm / max(1, totals.predicted)
        relation = zero
        if student.next_sentence is not None and batch.next_sentence_labels is not None:
            relation = (
                next_sentence_loss(student.next_sentence, batch.next_sentence_labels) / totals.sequences
            )
        section = self._section
        if section is None or not teachers:
            parts = Parts(zero, zero, zero, zero)
            return Losses(mlm + relation, mlm.detach(), relation.detach(), zero, parts, zero)
        parts = Parts(zero, zero, zero, zero)
        for share, match, teacher in zip(section.shares, self._matches, teachers, strict=True):
            found = self._parts(section, match, student, teacher, batch, totals, temperature, together)
            parts = Parts(*(before + share * part for before, part in zip(parts, found, strict=True)))
        follow = weighted(section, parts)
        total = section.mlm_weight * (mlm + relation) + section.kd_weight * follow
        if together is not None:
            # Its sums are in there without gradient; this adds the gradient alone.
            total = total + (together.total - together.total.detach())
        same = zero
        if agreement:
            for share, teacher in zip(section.shares, teachers, strict=True):
                same = same + share * same_choices(student, teacher, batch) / max(1, totals.predicted)
        parts = Parts(*(part.detach() for part in parts))
        return Losses(total, mlm.detach(), relation.detach(), follow.detach(), parts, same)

    def _together(
        self,
        student: Predictions,
        teachers: Sequence[Answer],
        batch: Batch,
        totals: Counts,
        temperature: float,
    ) -> TokenLosses | None:
        """Return both losses of the logits in one, where there is one teacher that gives them whole."""
        section = self._section
        if section is None or not section.logits_weight or len(teachers) != 1:
            return None
        (teacher,) = teachers
        if isinstance(teacher, TopLogits):
            return None
        everywhere = section.positions == "all"
        return token_losses(
            student.tokens,
            teacher.tokens,
            batch.labels,
            section.mlm_weight / max(1, totals.predicted),
            section.kd_weight * section.logits_weight / logits_count(totals, everywhere),
            temperature,
            everywhere,
        )

    @staticmethod
    def _parts(
        section: DistillationSection,
        match: Match,
        student: Predictions,
        teacher: Answer,
        batch: Batch,
        totals: Counts,
        temperature: float,
        together: TokenLosses | None,
    ) -> Parts:
        zero = torch.zeros((), device=student.tokens.device)
        logits = zero
        everywhere = section.positions == "all"
        if together is not None:
            logits = together.distillation / logits_count(totals, everywhere)
        elif section.logits_weight:
            mine, its = (student, teacher) if everywhere else predicted_only(student, teacher, batch)
            logits = logits_loss(mine.tokens, its, temperature) / logits_count(totals, everywhere)
        if isinstance(teacher, TopLogits):
            return Parts(logits, zero, zero, zero)
        mask = batch.attention_mask
        features = (
            hidden_losses(match.hidden, student, teacher, mask),
            attention_losses(match.attention, student, teacher, batch),
            hidden_losses(match.embeddings, student, teacher, mask),
        )
        # A part is the mean over its pairs of layers.
        means = (torch.stack(losses).mean() / totals.real if losses else zero for losses in features)
        return Parts(logits, *means)


def logits_count(totals: Counts, everywhere: bool) -> int:
    """Return how many positions the distillation of logits is a mean over."""
    return totals.real if everywhere else max(1, totals.predicted)


def zero_of(student: Predictions) -> Tensor:
    """Return 0 with a gradient of zeros to every output, so that backward runs through the same layers."""
    outputs = (student.tokens, student.next_sentence, *student.hidden.values(), *student.attention.values())
    # Sums over nothing: a product with 0 would keep a NaN.
    return torch.stack([output.flatten()[:0].float().sum() for output in outputs if output is not None]).sum()


def weighted(section: DistillationSection, parts: Parts) -> Tensor:
    """Return KD: the parts times the recipe's weights, summed; parts that the recipe lacks add nothing."""
    weights = (section.hidden, section.attention, section.embeddings)
    total = section.logits_weight * parts.logits
    for part, weight in zip(parts[1:], weights, strict=True):
        if weight is not None:
            total = total + weight.weight * part
    return total


def logits_loss(student: Tensor, teacher: Answer, temperature: float) -> Tensor:
    """Return the summed T^2 KL of logits at the same positions, whole or cut down to the top ones."""
    if isinstance(teacher, TopLogits):
        return top_distillation_loss(student, teacher, temperature)
    return distillation_loss(student, teacher.tokens, temperature)


def hidden_losses(
    pairs: Sequence[HiddenPair], student: Predictions, teacher: Predictions, attention_mask: Tensor | None
) -> list[Tensor]:
    """Return the hidden-state loss of every pair, each a sum over tokens."""
    return [
        hidden_loss(student.hidden[pair.student], teacher.hidden[pair.teacher], attention_mask)
        for pair in pairs
    ]


def attention_losses(
    pairs: Sequence[LayerPair], student: Predictions, teacher: Predictions, batch: Batch
) -> list[Tensor]:
    """Return the attention loss of every pair, each a sum over query tokens."""
    keys = None if batch.sequences is None or not pairs else batch.sequences.sizes
    return [
        attention_loss(
            student.attention[pair.student], teacher.attention[pair.teacher], batch.attention_mask, keys
        )
        for pair in pairs
    ]


def predicted_only(student: Predictions, teacher: Answer, batch: Batch) -> tuple[Predictions, Answer]:
    """Return both sides' logits at the predicted positions only; as they are when the batch has no others."""
    if batch.counts.predicted == len(batch.labels):
        return student, teacher
    rows = torch.nonzero(batch.labels != IGNORED).squeeze(1)
    mine = student._replace(tokens=student.tokens[rows])
    if isinstance(teacher, TopLogits):
        # Stored for the positions that the loss needs: a row may be missing where nothing is predicted.
        kept = rows if len(teacher.ids) == len(batch.labels) else slice(None)
        return mine, TopLogits(*(column[kept] for column in teacher))
    return mine, teacher._replace(tokens=teacher.tokens[rows])


@torch.no_grad()
def same_choices(student: Predictions, teacher: Answer, batch: Batch) -> Tensor:
    """Count the predicted positions where student and teacher hold the same token for the likeliest."""
    mine, its = predicted_only(student, teacher, batch)
    best = its.ids[:, 0] if isinstance(its, TopLogits) else its.tokens.argmax(dim=-1)
    return (mine.tokens.argmax(dim=-1) == best).sum()
