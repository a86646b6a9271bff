"""What one forward pass eats, and what the loss is divided by."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.data.ragged import Ragged
from sparse_pretrain.data.shards import Rows


class Counts(NamedTuple):
    """Numbers of terms in the loss's sums: predicted tokens, real tokens, sequences."""

    predicted: int
    real: int
    sequences: int


class Sequences(NamedTuple):
    """Where the sequences of a micro-batch stand, when its rows hold several: attention stays inside each.

    Attributes:
        bounds: int32 [parts + 1], where parts begin and end in rows x length flat, from 0 to its end; a part is a
            sequence, or the padding behind a row's last one.
        longest: tokens of the longest part.
        position_ids: int64 [rows, length], from 0 in every sequence; 0 at padding.
        firsts: int64 [sequences], flat places of their first tokens.
    """

    bounds: Tensor
    longest: int
    position_ids: Tensor
    firsts: Tensor

    @property
    def numbers(self) -> Tensor:
        """Which part each slot belongs to, from 0: int64 [rows, length]."""
        sizes = self.bounds.diff()
        parts = torch.arange(len(sizes), device=sizes.device)
        slots = self.position_ids.numel()
        return parts.repeat_interleave(sizes, output_size=slots).view_as(self.position_ids)

    @property
    def sizes(self) -> Tensor:
        """How many slots the part has that each slot belongs to: int32 [rows, length]."""
        return self.bounds.diff()[self.numbers]

    def to(self, device: torch.device) -> "Sequences":
        """Return them on `device`."""
        bounds, ids, firsts = (
            tensor.to(device, non_blocking=True) for tensor in (self.bounds, self.position_ids, self.firsts)
        )
        return Sequences(bounds, self.longest, ids, firsts)


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one rank, trimmed to its longest row.

    Attributes:
        input_ids: int64 [rows, length], disguised tokens.
        attention_mask: int64 [rows, length], 1 at real tokens; None when no row is padded.
        token_type_ids: int64 [rows, length], 1 in the second segment; None without pairs.
        positions: int64 [positions], flat indices into rows x length where logits are wanted.
        labels: int64 [positions], the token to predict, or `IGNORED`.
        next_sentence_labels: int64 [sequences], 1 = random next, or `IGNORED`; None without pairs.
        counts: of this micro-batch; all 0 when it adds no term to any loss (see `without_terms`).
        stream: int64 [rows], each row's place in the endless stream of training samples; None outside it.
        sequences: where they stand; None when every row is one.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    positions: Tensor
    labels: Tensor
    next_sentence_labels: Tensor | None
    counts: Counts
    stream: NDArray[np.int64] | None = None
    sequences: Sequences | None = None

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
            None if self.sequences is None else self.sequences.to(device),
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
        types = (in_second_segments(rows, width) & real).astype(np.int64)
    return Batch(
        input_ids=torch.from_numpy(np.ascontiguousarray(inputs)),
        attention_mask=None if real.all() else torch.from_numpy(real.astype(np.int64)),
        token_type_ids=None if types is None else torch.from_numpy(types),
        positions=torch.from_numpy(wanted),
        labels=torch.from_numpy(labels.reshape(-1)[wanted]),
        next_sentence_labels=None if rows.random_next is None else torch.from_numpy(rows.random_next),
        counts=Counts(int(predicted.sum()), int(real.sum()), int(rows.sequences.sum())),
        stream=stream,
        sequences=None if rows.starts is None else find_sequences(rows.starts, rows.lengths, width),
    )


def in_second_segments(rows: Rows, width: int) -> NDArray[np.bool_]:
    """Say of each slot whether a second segment is the last that began before it: bool [rows, width].

    Behind a row's last segment that goes on over the padding.
    """
    if rows.second_start is None:
        return np.zeros((len(rows.lengths), width), dtype=bool)
    row = np.repeat(np.arange(len(rows.lengths)), rows.sequences)
    # +1 where a second segment begins, -1 where the next sequence does: the sum so far is 1 inside.
    changes = np.zeros((len(rows.lengths), width + 1), dtype=np.int8)
    changes[row, rows.second_start] = 1
    if rows.starts is not None:
        later = rows.starts.flat > 0
        changes[row[later], rows.starts.flat[later]] = -1
    inside: NDArray[np.bool_] = changes[:, :width].cumsum(axis=1) > 0
    return inside


def find_sequences(starts: Ragged, lengths: NDArray[np.int64], width: int) -> Sequences:
    """Return where the sequences of rows stand.

    Args:
        starts: of every row its sequences' first tokens.
        lengths: int64 [rows], real tokens.
        width: slots of a row.
    """
    numbers = np.arange(len(lengths), dtype=np.int64)
    firsts = np.repeat(numbers * width, starts.counts) + starts.flat
    padding = (numbers * width + lengths)[lengths < width]
    bounds = np.sort(np.concatenate([firsts, padding, [len(lengths) * width]]))
    sizes = np.diff(bounds)
    positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes)
    positions = positions.reshape(-1, width)
    positions[np.arange(width)[None, :] >= lengths[:, None]] = 0
    return Sequences(
        torch.from_numpy(bounds.astype(np.int32)),
        int(sizes.max()),
        torch.from_numpy(positions),
        torch.from_numpy(firsts),
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
