"""Batches of one rank, in the global order; the position in the data is one integer."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.batch import Batch, make_batch, without_terms
from sparse_pretrain.data.masking import IGNORED, TokenTable, mask_tokens
from sparse_pretrain.data.mix import AnySplit
from sparse_pretrain.data.order import epochs_and_samples
from sparse_pretrain.errors import UserError


@dataclass(frozen=True)
class Slice:
    """Which part of every global batch this rank takes, and in how many micro-batches.

    Rank r of `world_size` takes samples r, r + world_size, … of each global batch, so shares differ by one
    row at most. Every rank makes the same number of passes, because collectives inside the model must
    match, and cuts its share into as many parts of nearly the same size.

    Raises:
        UserError: there are fewer rows than ranks.
    """

    global_size: int
    micro_size: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_size < self.world_size:
            raise UserError(
                f"batch.global_size = {self.global_size}: fewer rows than {self.world_size} ranks; set it to at "
                f"least {self.world_size}, or run on {self.global_size} or fewer"
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step on each rank: as few as the largest share needs."""
        return ceil_div(ceil_div(self.global_size, self.world_size), self.micro_size)

    @property
    def rows(self) -> int:
        """Rows of each global batch that this rank takes."""
        return len(range(self.rank, self.global_size, self.world_size))

    @property
    def smallest_pass(self) -> int:
        """Rows of the smallest micro-batch on any rank.

        0 only at a micro_size of 1, where a rank with a row less than another has nothing for the last pass.
        """
        return self.global_size // self.world_size // self.accumulation

    @property
    def largest_pass(self) -> int:
        """Rows of the largest micro-batch on any rank, at most `micro_size`."""
        return ceil_div(ceil_div(self.global_size, self.world_size), self.accumulation)

    def cuts(self) -> list[slice]:
        """Return which of this rank's rows make each micro-batch: consecutive, the larger ones first."""
        size, larger = divmod(self.rows, self.accumulation)
        sizes = [size + (number < larger) for number in range(self.accumulation)]
        ends = list(accumulate(sizes))
        return [slice(end - rows, end) for rows, end in zip(sizes, ends, strict=True)]


def ceil_div(number: int, divisor: int) -> int:
    """Return number / divisor, rounded up."""
    return -(-number // divisor)


class TrainingLoader:
    """Endless training batches; `Stateful`.

    Order and masking depend on (dataset fingerprint, seed, epoch, sample) only, so any number of ranks
    and any split into micro-batches sees the same global batches. The next step's batches are built in
    a background thread while the current step trains.
    """

    def __init__(
        self,
        split: AnySplit,
        part: Slice,
        masking: MaskingSection,
        table: TokenTable,
        seed: int,
        every_real_position: bool,
    ) -> None:
        self.split = split
        self.part = part
        self.samples_seen = 0
        self._masking = masking
        self._table = table
        self._seed = seed
        self._every_real_position = every_real_position
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._next: tuple[int, Future[list[Batch]]] | None = None

    def next_step(self) -> list[Batch]:
        """Return this rank's micro-batches of the next global batch and move on by one step."""
        start = self.samples_seen
        if self._next is None or self._next[0] != start:
            self._next = (start, self._thread.submit(self.batches_at, start))
        batches = self._next[1].result()
        self.samples_seen = start + self.part.global_size
        self._next = (self.samples_seen, self._thread.submit(self.batches_at, self.samples_seen))
        return batches

    def batches_at(self, start: int) -> list[Batch]:
        """Return this rank's micro-batches of the global batch that begins at position `start`."""
        part = self.part
        epochs, samples = epochs_and_samples(
            start, part.global_size, len(self.split), self.split.manifest.fingerprint, self._seed
        )
        stream = np.arange(start, start + part.global_size, dtype=np.int64)
        mine = slice(part.rank, None, part.world_size)
        epochs, samples, stream = epochs[mine], samples[mine], stream[mine]
        batches = []
        for cut in part.cuts():
            # Nothing left for this pass, which other ranks make: a row more than once, for the collectives only.
            silent = cut.start == cut.stop
            rows = slice(cut.stop - 1, cut.stop) if silent else cut
            batch = self._build(epochs[rows], samples[rows], stream[rows])
            batches.append(without_terms(batch) if silent else batch)
        return batches

    def _build(self, epochs: np.ndarray, samples: np.ndarray, stream: np.ndarray) -> Batch:
        rows = self.split.gather(samples)
        inputs, labels = mask_tokens(rows.tokens, epochs, samples, self._seed, self._masking, self._table)
        return make_batch(rows, inputs, labels, self._every_real_position, stream)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data."""
        return {"samples_seen": self.samples_seen, "fingerprint": self.split.manifest.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, in O(1).

        Raises:
            UserError: the position belongs to other data.
        """
        mine = self.split.manifest.fingerprint
        if state["fingerprint"] != mine:
            raise UserError(
                f"data: these rows have fingerprint {mine}, the checkpoint was trained on "
                f"{state['fingerprint']}; give the same prepared data, or start in another output folder"
            )
        self.samples_seen = int(state["samples_seen"])


def evaluation_batches(
    split: AnySplit,
    rows: int,
    part: Slice,
    masking: MaskingSection,
    table: TokenTable,
    seed: int,
) -> Iterator[Batch]:
    """Yield this rank's share of the first `rows` held-out rows, masked the same way every time.

    Every rank yields the same number of batches (collectives inside the model must match): the rows of
    a short rank are repeated with nothing to predict.
    """
    rows = min(rows, len(split))
    per_pass = part.micro_size * part.world_size
    for first in range(0, rows, per_pass):
        positions = np.arange(first, first + per_pass, dtype=np.int64)[part.rank :: part.world_size]
        samples = np.minimum(positions, rows - 1)
        gathered = split.gather(samples)
        epochs = np.zeros_like(samples)
        inputs, labels = mask_tokens(gathered.tokens, epochs, samples, seed, masking, table)
        repeated = positions >= rows
        labels[repeated] = IGNORED
        if gathered.random_next is not None:
            gathered.random_next[np.repeat(repeated, gathered.sequences)] = IGNORED
        yield make_batch(gathered, inputs, labels, every_real_position=False)
