"""The reference's way of one training step, on plain torch and transformers: what `bench train` compares with.

As in the reference's Trainer script: padded segment pairs, logits at every position for student and teacher, the
mean masked-language loss plus next-sentence prediction, KD as T^2 KL over all non-padding positions, and masks by
`weight * mask` in every forward pass. What torch offers for free is used: fused AdamW, autocast, DDP.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForPreTraining

from sparse_pretrain.bench.train_settings import Measurement
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


class ReferenceStep:
    """Student, teacher, optimizer and padded batches; call it for one optimizer step."""

    def __init__(self, world: World, measurement: Measurement, table: TokenTable) -> None:
        self._world = world
        self._case = measurement.case
        self._split = PreparedSplit(Path(measurement.pairs), "train")
        self._table = table
        self._position = 0
        student: Any = AutoModelForPreTraining.from_pretrained(measurement.start, dtype=torch.float32)
        self._config = student.config
        if measurement.mode != "dense":
            mask_forward(student)
        student.to(world.device).train()
        self._student: Any = student
        if world.size > 1:
            self._student = nn.parallel.DistributedDataParallel(student)
        self._teacher: Any = None
        if measurement.mode == "pruning + teacher":
            self._teacher = AutoModelForPreTraining.from_pretrained(measurement.start, dtype=torch.float32)
            self._teacher.to(world.device).eval().requires_grad_(False)
        self._optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.01, fused=True)

    def __call__(self) -> tuple[int, int]:
        """Do one step; return this rank's real tokens, and the slots that went through the encoder."""
        inputs, labels, relation = self._batch()
        with self._autocast():
            output = self._student(**inputs)
            logits = output.prediction_logits
            loss = nn.functional.cross_entropy(
                logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED
            )
            loss = loss + nn.functional.cross_entropy(output.seq_relationship_logits, relation)
            if self._teacher is not None:
                with torch.no_grad():
                    its = self._teacher(**inputs).prediction_logits
                loss = 0.5 * loss + 0.5 * distillation(logits, its, inputs["attention_mask"])
        loss.backward()
        nn.utils.clip_grad_norm_(self._student.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return int(inputs["attention_mask"].sum()), inputs["input_ids"].numel()

    def _autocast(self) -> torch.autocast:
        enabled = self._case.precision == "bf16"
        return torch.autocast(self._world.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _batch(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
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
        return (
            {name: value.to(device) for name, value in batch.items()},
            torch.from_numpy(labels).to(device),
            torch.from_numpy(rows.random_next).to(device),
        )


def mask_forward(model: Any) -> None:
    """Multiply every prunable weight by a mask of the final sparsity in each forward pass."""
    for name, weight in prunable_weights(model).items():
        module = model.get_submodule(name.removesuffix(".weight"))
        threshold = weight.detach().abs().flatten().kthvalue(round(SPARSITY * weight.numel())).values
        parametrize.register_parametrization(
            module, "weight", Masked((weight.detach().abs() > threshold).float())
        )


def distillation(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Return T^2 KL over all non-padding positions, a mean per token."""
    real = attention_mask.bool()
    mine = nn.functional.log_softmax(student[real].float() / TEMPERATURE, dim=-1)
    its = nn.functional.softmax(teacher[real].float() / TEMPERATURE, dim=-1)
    return nn.functional.kl_div(mine, its, reduction="batchmean") * TEMPERATURE**2
