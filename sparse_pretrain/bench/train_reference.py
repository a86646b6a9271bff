"""The reference's way of one training step, on plain torch and transformers: what `bench train` compares with.

As in the reference's Trainer script: padded segment pairs, logits at every position for student and teacher, the
mean masked-language loss plus next-sentence prediction, KD as T^2 KL over all non-padding positions, and masks by
`weight * mask` in every forward pass. What torch offers for free is used: fused AdamW, autocast, DDP.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForPreTraining

from sparse_pretrain.bench.train_settings import Measurement, Mode
from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.masking import IGNORED, TokenTable, mask_tokens
from sparse_pretrain.data.order import epochs_and_samples
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.training.world import World

TEMPERATURE = 2.0
SPARSITY = 0.85


class Masked(nn.Module):
    """`weight * mask`, computed in every forward pass."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its pruned entries at zero."""
        return weight * self.mask


class Padded(NamedTuple):
    """One batch as the reference has it.

    Attributes:
        inputs: `input_ids`, `attention_mask`, `token_type_ids`, int64 [rows, length] each.
        labels: int64 [rows, length], `IGNORED` where nothing is predicted.
        relation: int64 [rows], 1 = the second segment does not follow.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    relation: Tensor


class ReferenceModel:
    """Student, teacher and optimizer; `step` trains on a batch."""

    def __init__(self, world: World, precision: str, mode: Mode, start: str) -> None:
        self._device = world.device
        self._precision = precision
        student: Any = AutoModelForPreTraining.from_pretrained(start, dtype=torch.float32)
        self.masks = mask_forward(student) if mode != "dense" else {}
        student.to(world.device).train()
        self.student: Any = student
        if world.size > 1:
            self.student = nn.parallel.DistributedDataParallel(student)
        self._teacher: Any = None
        if mode == "pruning + teacher":
            self._teacher = AutoModelForPreTraining.from_pretrained(start, dtype=torch.float32)
            self._teacher.to(world.device).eval().requires_grad_(False)
        # As Hugging Face's Trainer does: biases and LayerNorm weights do not decay.
        groups = [
            {"params": [one for one in student.parameters() if one.ndim >= 2], "weight_decay": 0.01},
            {"params": [one for one in student.parameters() if one.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=5e-5, fused=True)

    def step(self, batch: Padded, learning_rate: float | None = None) -> Tensor:
        """Do one optimizer step; return the masked-language loss, in nats a predicted token."""
        for group in self._optimizer.param_groups if learning_rate is not None else ():
            group["lr"] = learning_rate
        with self._autocast():
            output = self.student(**batch.inputs)
            logits = output.prediction_logits
            mlm = nn.functional.cross_entropy(
                logits.view(-1, logits.shape[-1]), batch.labels.view(-1), ignore_index=IGNORED
            )
            loss = mlm + nn.functional.cross_entropy(output.seq_relationship_logits, batch.relation)
            if self._teacher is not None:
                with torch.no_grad():
                    its = self._teacher(**batch.inputs).prediction_logits
                loss = 0.5 * loss + 0.5 * distillation(logits, its, batch.inputs["attention_mask"])
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return mlm.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16")


class ReferenceStep:
    """The reference on padded pairs from the disk; call it for one optimizer step."""

    def __init__(self, world: World, measurement: Measurement, table: TokenTable) -> None:
        self._world = world
        self._case = measurement.case
        self._split = PreparedSplit(Path(measurement.pairs), "train")
        self._table = table
        self._position = 0
        self._model = ReferenceModel(world, self._case.precision, measurement.mode, measurement.start)

    def __call__(self) -> tuple[int, int]:
        """Do one step; return this rank's real tokens, and the slots that went through the encoder."""
        batch = self._batch()
        self._model.step(batch)
        return int(batch.inputs["attention_mask"].sum()), batch.labels.numel()

    def _batch(self) -> Padded:
        size = self._case.rows * self._world.size
        epochs, samples = epochs_and_samples(
            self._position, size, len(self._split), self._split.manifest.fingerprint, 0
        )
        self._position += size
        mine = slice(self._world.rank, None, self._world.size)
        rows = self._split.gather(samples[mine])
        inputs, labels = mask_tokens(
            rows.tokens, epochs[mine], samples[mine], 0, MaskingSection(), self._table
        )
        if rows.second_start is None or rows.random_next is None:
            raise ValueError("the reference's data has segment pairs")
        columns = torch.arange(inputs.shape[1])[None, :]
        real = columns < torch.from_numpy(rows.lengths)[:, None]
        types = (columns >= torch.from_numpy(rows.second_start)[:, None]) & real
        batch = {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": real.long(),
            "token_type_ids": types.long(),
        }
        device = self._world.device
        return Padded(
            {name: value.to(device) for name, value in batch.items()},
            torch.from_numpy(labels).to(device),
            torch.from_numpy(rows.random_next).to(device),
        )


def mask_forward(model: Any) -> dict[str, Masked]:
    """Multiply every prunable weight by a mask of the final sparsity in each forward pass; return the masks."""
    masks = {}
    for name, weight in prunable_weights(model).items():
        module = model.get_submodule(name.removesuffix(".weight"))
        threshold = weight.detach().abs().flatten().kthvalue(round(SPARSITY * weight.numel())).values
        masks[name] = Masked((weight.detach().abs() > threshold).float())
        parametrize.register_parametrization(module, "weight", masks[name])
    return masks


def distillation(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Return T^2 KL over all non-padding positions, a mean per token."""
    real = attention_mask.bool()
    mine = nn.functional.log_softmax(student[real].float() / TEMPERATURE, dim=-1)
    its = nn.functional.softmax(teacher[real].float() / TEMPERATURE, dim=-1)
    return nn.functional.kl_div(mine, its, reduction="batchmean") * TEMPERATURE**2
