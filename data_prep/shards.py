"""Rows to Arrow files that training maps without a copy; `sparse_pretrain.data.manifest` has the columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrow import as_arrow
from data_prep.rows import Row
from sparse_pretrain.data.manifest import RowFormat, Shard, Split
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
        self._has_pairs = row_format == "pairs"
        self._padding = padding
        # Memory is only touched as rows arrive.
        self._input_ids = np.empty((rows_per_shard, sequence_length), dtype)
        self._length = np.empty(rows_per_shard, np.uint16)
        self._second_start = np.empty(rows_per_shard, np.uint16)
        self._random_next = np.empty(rows_per_shard, np.uint8)
        self._filled = 0

    def add(self, row: Row) -> None:
        """Append a row; write a shard when one is full."""
        at, length = self._filled, len(row.tokens)
        self._input_ids[at, :length] = row.tokens
        self._input_ids[at, length:] = self._padding
        self._length[at] = length
        self._second_start[at] = row.second_start
        self._random_next[at] = row.random_next
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
        columns: dict[str, NDArray[Any]] = {"length": self._length[:count]}
        if self._has_pairs:
            columns["second_start"] = self._second_start[:count]
            columns["random_next"] = self._random_next[:count]
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


def write_shard(path: Path, input_ids: NDArray[Any], columns: dict[str, NDArray[Any]]) -> None:
    """Write one Arrow IPC file, uncompressed, as one record batch.

    Args:
        path: the file, written atomically.
        input_ids: uint16 or uint32 [rows, sequence_length].
        columns: the other columns by name, each [rows].
    """
    tokens = pa.FixedSizeListArray.from_arrays(as_arrow(input_ids.reshape(-1)), input_ids.shape[1])
    batch = pa.record_batch({"input_ids": tokens, **{name: as_arrow(data) for name, data in columns.items()}})
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
