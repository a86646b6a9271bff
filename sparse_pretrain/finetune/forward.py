"""From a batch to the loss: the task's, and the teacher's; the `Trainer` that uses it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from sparse_pretrain.finetune.kinds.base import Answers, TaskKind
from sparse_pretrain.finetune.recipe import DistillationSection


def task_loss(answers: Sequence[Answers]) -> Tensor:
    """Return the mean cross-entropy over rows (a score: mean squared error), mean over heads."""
    losses = [
        F.mse_loss(head.logits[:, 0], head.labels)
        if head.labels.is_floating_point()
        else F.cross_entropy(head.logits, head.labels)
        for head in answers
    ]
    return torch.stack(losses).mean()


def teacher_loss(student: Sequence[Answers], teacher: Sequence[Answers], temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over rows and heads (Hinton et al. 2015).

    For scores, which have no distribution, the mean squared distance of the two.
    """
    losses = []
    for own, other in zip(student, teacher, strict=True):
        if own.labels.is_floating_point():
            losses.append(F.mse_loss(own.logits, other.logits))
            continue
        said = F.log_softmax(own.logits / temperature, dim=-1)
        wanted = F.log_softmax(other.logits / temperature, dim=-1)
        losses.append(F.kl_div(said, wanted, reduction="batchmean", log_target=True) * temperature**2)
    return torch.stack(losses).mean()


class TaskTrainer(Trainer):
    """A `Trainer` whose loss is the task's, with a share of the teacher's where there is one."""

    kind: TaskKind
    teacher: PreTrainedModel | None = None
    distillation: DistillationSection | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch (and the outputs, when asked)."""
        features = self.kind.inputs(inputs)
        outputs = self.kind.outputs(model, features)
        student = self.kind.answers(outputs, inputs)
        loss = task_loss(student)
        if self.teacher is not None and self.distillation is not None:
            # accelerate's autocast wraps the student's forward only.
            with torch.no_grad(), self.accelerator.autocast():
                teacher = self.kind.answers(self.kind.outputs(self.teacher, features), inputs)
            weight = self.distillation.weight
            kd = teacher_loss(student, teacher, self.distillation.temperature)
            loss = (1 - weight) * loss + weight * kd
        return (loss, {"logits": outputs}) if return_outputs else loss
