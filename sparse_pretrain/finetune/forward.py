"""From a batch to the loss: the task's, and the teacher's; the `Trainer` that uses it."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from sparse_pretrain.finetune.kinds.base import LENGTH, Answers, Batch, TaskKind
from sparse_pretrain.finetune.ranks import Alone, DealtBatches
from sparse_pretrain.finetune.recipe import DistillationSection
from sparse_pretrain.training.world import World

Rows = Sequence[Tensor | int]


def rows_of(answers: Sequence[Answers]) -> list[int]:
    """Return how many rows each head answered."""
    return [len(head.labels) for head in answers]


def rows_over_ranks(answers: Sequence[Answers], ranks: int) -> list[Tensor]:
    """Return the rows of each head over all ranks, divided by the number of ranks (collective).

    DDP and ZeRO take the mean of the ranks' gradients. Sums divided by this give the mean over all rows, as one
    process has it, however unequal the shares are: tags, for example, are never the same number on two ranks.
    """
    counts = torch.tensor(rows_of(answers), dtype=torch.float32, device=answers[0].logits.device)
    dist.all_reduce(counts)
    return list(counts / ranks)


def task_loss(answers: Sequence[Answers], rows: Rows | None = None) -> Tensor:
    """Return the mean cross-entropy over rows (a score: mean squared error), mean over heads.

    Args:
        answers: of each head.
        rows: what each head's sum is divided by, if not by its own rows.
    """
    losses = []
    for head, count in zip(answers, rows or rows_of(answers), strict=True):
        if head.labels.is_floating_point():
            total = F.mse_loss(head.logits[:, 0], head.labels, reduction="sum")
        else:
            total = F.cross_entropy(head.logits, head.labels, reduction="sum")
        losses.append(total / count)
    return torch.stack(losses).mean()


def teacher_loss(
    student: Sequence[Answers], teacher: Sequence[Answers], temperature: float, rows: Rows | None = None
) -> Tensor:
    """Return T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over rows and heads (Hinton et al. 2015).

    For scores, which have no distribution, the mean squared distance of the two. `rows` as in `task_loss`.
    """
    losses = []
    for own, other, count in zip(student, teacher, rows or rows_of(student), strict=True):
        if own.labels.is_floating_point():
            losses.append(F.mse_loss(own.logits, other.logits, reduction="sum") / count)
            continue
        said = F.log_softmax(own.logits / temperature, dim=-1)
        wanted = F.log_softmax(other.logits / temperature, dim=-1)
        total = F.kl_div(said, wanted, reduction="sum", log_target=True)
        losses.append(total / count * temperature**2)
    return torch.stack(losses).mean()


def freeze_unused(kind: TaskKind, model: PreTrainedModel, batch: Batch) -> None:
    """Freeze the weights that have no part in the loss, such as a pooler's whose output nobody reads.

    They get no gradient, so no optimizer moves them; DDP would wait for their gradients, or search for them at every
    step.
    """
    was_training = model.training
    model.eval()
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    task_loss(kind.answers(kind.outputs(model, kind.inputs(batch)), batch)).backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
    model.zero_grad(set_to_none=True)
    model.train(was_training)


class TaskTrainer(Trainer):
    """A `Trainer` whose loss is the task's, with a share of the teacher's where there is one.

    On several ranks it trains what it trains on one: the same batches, dealt out, and the mean over all of their rows.

    Attributes:
        kind: of task.
        batch_size: examples of a step, over all ranks.
        world: the ranks.
        bf16: the teacher's forward pass is autocast, as the student's is.
        teacher: the model to learn from.
        distillation: how.
    """

    kind: TaskKind
    batch_size: int
    world: World = Alone()
    bf16: bool = False
    teacher: PreTrainedModel | None = None
    distillation: DistillationSection | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's part of every batch."""
        if self.world.size == 1:
            return super().get_train_dataloader()
        data: Any = self.train_dataset
        order = LengthGroupedSampler(self.batch_size, dataset=data, lengths=data[LENGTH])
        return DataLoader(
            data,
            batch_sampler=DealtBatches(order, self.batch_size, self.world),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

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
        rows = rows_over_ranks(student, self.world.size) if self.world.size > 1 else None
        loss = task_loss(student, rows)
        if self.teacher is not None and self.distillation is not None:
            # What wraps the student's forward does not reach the teacher's.
            device = self.args.device.type
            with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
                teacher = self.kind.answers(self.kind.outputs(self.teacher, features), inputs)
            weight = self.distillation.weight
            kd = teacher_loss(student, teacher, self.distillation.temperature, rows)
            loss = (1 - weight) * loss + weight * kd
        return (loss, {"logits": outputs}) if return_outputs else loss
