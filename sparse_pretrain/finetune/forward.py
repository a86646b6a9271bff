"""From a batch to the task's outputs and loss; the `Trainer` that uses them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer

from sparse_pretrain.finetune.recipe import TaskSection


def task_logits(model: nn.Module, inputs: dict[str, Tensor], task: TaskSection) -> Tensor:
    """Return fp32 outputs [examples, classes], or [examples, 1] for a regression.

    Pairs that are encoded separately come as 2 n rows, first sentences before second ones, to a bare
    encoder; their score is the cosine of the two mean token vectors (Reimers & Gurevych 2019).
    """
    if task.pair_encoding == "joint":
        logits: Tensor = model(**inputs).logits
        return logits.float()
    hidden = model(**inputs).last_hidden_state.float()
    real = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    means = (hidden * real).sum(dim=1) / real.sum(dim=1)
    first, second = means.chunk(2)
    return torch.cosine_similarity(first, second, dim=-1).unsqueeze(-1)


def task_loss(logits: Tensor, labels: Tensor, task: TaskSection) -> Tensor:
    """Return the mean cross-entropy, or the mean squared error of a regression."""
    if task.kind == "classification":
        return F.cross_entropy(logits, labels)
    return F.mse_loss(logits[:, 0], labels)


class TaskTrainer(Trainer):
    """A `Trainer` whose loss is the task's."""

    task: TaskSection

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch (and the outputs, when asked)."""
        labels = inputs["labels"]
        logits = task_logits(
            model, {key: value for key, value in inputs.items() if key != "labels"}, self.task
        )
        loss = task_loss(logits, labels, self.task)
        return (loss, {"logits": logits}) if return_outputs else loss
