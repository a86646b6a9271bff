"""What one forward pass eats, and what the loss is divided by."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.data.shards import Rows


class Counts(NamedTuple):
    """Numbers of terms in the loss's sums: predicted tokens, real tokens, rows."""

    predicted: int
    real: int
    rows: int


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank, trimmed to its longest row.

    Attributes:
        input_ids: int64 [rows, length], disguised tokens.
        attention_mask: int64 [rows, length], 1 at real tokens; None when no row is padded.
        token_type_ids: int64 [rows, length], 1 in the second segment; None without pairs.
        positions: int64 [positions], flat indices into rows x length where logits are wanted.
        labels: int64 [positions], the token to predict, or `IGNORED`.
        next_sentence_labels: int64 [rows], 1 = random next, or `IGNORED`; None without pairs.
        counts: of this micro-batch; all 0 when it adds no term to any loss (see `without_terms`).
        stream: int64 [rows], each row's place in the endless stream of training samples; None outside it.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    positions: Tensor
    labels: Tensor
    next_sentence_labels: Tensor | None
    counts: Counts
    stream: NDArray[np.int64] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            self.input_ids.to(device, non_blocking=True),
            move(self.attention_mask),
            move(self.token_type_ids),
            self.positions.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            move(self.next_sentence_labels),
            self.counts,
            self.stream,
        )


def make_batch(
    rows: Rows,
    inputs: np.ndarray,
    labels: np.ndarray,
    every_real_position: bool,
    stream: NDArray[np.int64] | None = None,
) -> Batch:
    """Build a micro-batch from rows and what masking made of them.

    Args:
        rows: as gathered.
        inputs: int64 [rows, length].
        labels: int64 [rows, length], `IGNORED` where nothing is predicted.
        every_real_position: True asks for logits at all real tokens (distillation needs them), False
            only where something is predicted.
        stream: int64 [rows], places in the stream of training samples; None outside it.
    """
    # A multiple of 8 suits the hardware's tiles; padding beyond it would only cost time.
    width = min(-(-int(rows.lengths.max()) // 8) * 8, inputs.shape[1])
    inputs, labels = inputs[:, :width], labels[:, :width]
    real = np.arange(width)[None, :] < rows.lengths[:, None]
    predicted = labels != IGNORED
    wanted = np.flatnonzero(real if every_real_position else predicted)
    if not len(wanted):
        wanted = np.zeros(1, dtype=np.int64)  # an empty head would leave ZeRO-3 ranks out of step
    types = None
    if rows.second_start is not None:
        types = ((np.arange(width)[None, :] >= rows.second_start[:, None]) & real).astype(np.int64)
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(inputs)),
        attention_mask=None if real.all() else torch.from_numpy(real.astype(np.int64)),
        token_type_ids=None if types is None else torch.from_numpy(types),
        positions=torch.from_numpy(wanted),
        labels=torch.from_numpy(labels.reshape(-1)[wanted]),
        next_sentence_labels=None if rows.random_next is None else torch.from_numpy(rows.random_next),
        counts=Counts(int(predicted.sum()), int(real.sum()), len(inputs)),
        stream=stream,
    )


def without_terms(batch: Batch) -> Batch:
    """Return the batch as one that is run but adds nothing: no labels, no counts, the rows as they are."""
    relation = batch.next_sentence_labels
    return replace(
        batch,
        labels=torch.full_like(batch.labels, IGNORED),
        next_sentence_labels=None if relation is None else torch.full_like(relation, IGNORED),
        counts=Counts(0, 0, 0),
    )
