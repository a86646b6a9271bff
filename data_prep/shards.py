"""Rows to Arrow files that training maps without a copy; `sparse_pretrain.data.manifest` has the columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrow import as_arrow
from data_prep.rows import PackedRow, Row
from sparse_pretrain.data.manifest import WITH_PAIRS, WITH_SEQUENCES, RowFormat, Shard, Split
from sparse_pretrain.data.ragged import Ragged
from sparse_pretrain.data.shards import Column
from sparse_pretrain.files import atomic_path, sha256_file


class ShardWriter:
    """Writes one split; holds one shard's rows in memory."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        row_format: RowFormat,
        sequence_length: int,
        dtype: type[np.uint16] | type[np.uint32],
        padding: int,
        rows_per_shard: int,
    ) -> None:
        """Write nothing yet.

        Args:
            folder: the prepared folder; shards go to `folder/split`.
            split: which split.
            row_format: decides the columns.
            sequence_length: slots of a row.
            dtype: of the tokens.
            padding: id that fills the unused slots.
            rows_per_shard: rows of every shard but the last.
        """
        self.shards: list[Shard] = []
        self.rows = 0
        self.tokens = 0
        self._folder = folder
        self._split = split
        self._has_pairs = row_format in WITH_PAIRS
        self._has_sequences = row_format in WITH_SEQUENCES
        self._padding = padding
        # Memory is only touched as rows arrive.
        self._input_ids = np.empty((rows_per_shard, sequence_length), dtype)
        self._length = np.empty(rows_per_shard, np.uint16)
        self._filled = 0
        # Of the sequences in the shard so far.
        self._ends = [0]
        self._sequence_start: list[int] = []
        self._second_start: list[int] = []
        self._random_next: list[int] = []

    def add(self, row: Row | PackedRow) -> None:
        """Append a row; write a shard when one is full."""
        at, length = self._filled, 0
        for sequence in row.sequences if isinstance(row, PackedRow) else (row,):
            self._sequence_start.append(length)
            self._second_start.append(length + sequence.second_start)
            self._random_next.append(sequence.random_next)
            self._input_ids[at, length : length + len(sequence.tokens)] = sequence.tokens
            length += len(sequence.tokens)
        self._ends.append(len(self._sequence_start))
        self._input_ids[at, length:] = self._padding
        self._length[at] = length
        self._filled += 1
        self.rows += 1
        self.tokens += length
        if self._filled == len(self._length):
            self._write()

    def close(self) -> None:
        """Write the last, shorter shard."""
        if self._filled:
            self._write()

    def _write(self) -> None:
        count, self._filled = self._filled, 0
        ends = np.array(self._ends, np.int32)

        def column(values: list[int], dtype: type[np.unsignedinteger[Any]]) -> Column:
            return Ragged(ends, np.array(values, dtype)) if self._has_sequences else np.array(values, dtype)

        columns: dict[str, Column] = {"length": self._length[:count]}
        if self._has_pairs:
            columns["second_start"] = column(self._second_start, np.uint16)
            columns["random_next"] = column(self._random_next, np.uint8)
        if self._has_sequences:
            columns["sequence_start"] = column(self._sequence_start, np.uint16)
        self._ends, self._sequence_start, self._second_start, self._random_next = [0], [], [], []
        path = self._folder / self._split / f"shard-{len(self.shards):05d}.arrow"
        write_shard(path, self._input_ids[:count], columns)
        self.shards.append(shard_at(path, self._folder, count))


def shard_at(path: Path, folder: Path, rows: int) -> Shard:
    """Return the manifest's entry of a shard in a prepared folder."""
    return Shard(
        file=path.relative_to(folder).as_posix(),
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )


def write_shard(path: Path, input_ids: NDArray[Any], columns: Mapping[str, Column]) -> None:
    """Write one Arrow IPC file, uncompressed, as one record batch.

    Args:
        path: the file, written atomically.
        input_ids: uint16 or uint32 [rows, sequence_length].
        columns: the other columns by name, each [rows].
    """
    tokens = pa.FixedSizeListArray.from_arrays(as_arrow(input_ids.reshape(-1)), input_ids.shape[1])
    batch = pa.record_batch(
        {"input_ids": tokens, **{name: column_as_arrow(data) for name, data in columns.items()}}
    )
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)


def column_as_arrow(column: Column) -> pa.Array:
    """Return numbers, or lists of numbers, as an Arrow array."""
    if isinstance(column, Ragged):
        # From 0, whatever larger column this one is part of.
        offsets = (column.offsets - column.offsets[0]).astype(np.int32)
        return pa.ListArray.from_arrays(as_arrow(offsets), as_arrow(column.flat))
    return as_arrow(column)
