"""Prepared rows, memory-mapped: training views them, it does not load them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_pretrain.data.manifest import Manifest, Split, read_manifest
from sparse_pretrain.errors import UserError


class Rows(NamedTuple):
    """Rows gathered from the shards.

    Attributes:
        tokens: int64 [rows, length], padded.
        lengths: int64 [rows], real tokens.
        second_start: int64 [rows], first token of the second segment; None without pairs.
        random_next: int64 [rows], NSP label, 1 = does not follow; None without pairs.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    second_start: NDArray[np.int64] | None
    random_next: NDArray[np.int64] | None


class PreparedSplit:
    """One split of a prepared folder, indexed by row number over all its shards."""

    def __init__(self, folder: Path, split: Split) -> None:
        """Map every shard.

        Raises:
            UserError: a shard is missing, has another size than the manifest says, or is not Arrow.
        """
        self.manifest: Manifest = read_manifest(folder)
        counts = self.manifest.splits.get(split)
        if counts is None or counts.rows == 0:
            raise UserError(f"{folder}: the {split} split has no rows; prepare more data")
        self.has_pairs = self.manifest.format == "pairs"
        self._columns: list[dict[str, NDArray[np.unsignedinteger]]] = []
        for shard in counts.shards:
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
                raise UserError(
                    f"{path}: {found}, the manifest says {shard.bytes} bytes; prepare the data again"
                )
            self._columns.append(map_shard(path, self.manifest.sequence_length, self.has_pairs))
        self._ends = np.cumsum([shard.rows for shard in counts.shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, samples: NDArray[np.int64]) -> Rows:
        """Copy the given rows out of the maps, in the given order."""
        shard_of = np.searchsorted(self._ends, samples, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        tokens = np.empty((len(samples), self.manifest.sequence_length), dtype=np.int64)
        scalars = {
            name: np.empty(len(samples), dtype=np.int64) for name in self._columns[0] if name != "input_ids"
        }
        for shard in np.unique(shard_of):
            chosen = shard_of == shard
            rows = samples[chosen] - starts[shard]
            columns = self._columns[shard]
            tokens[chosen] = columns["input_ids"][rows]
            for name, values in scalars.items():
                values[chosen] = columns[name][rows]
        return Rows(tokens, scalars["length"], scalars.get("second_start"), scalars.get("random_next"))


def map_shard(path: Path, length: int, has_pairs: bool) -> dict[str, NDArray[np.unsignedinteger]]:
    """Return the columns of an Arrow file as numpy views of the mapped bytes; `input_ids` as [rows, length]."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        tokens = table.column("input_ids")
        names = ["length", "second_start", "random_next"] if has_pairs else ["length"]
        columns = {name: view(one_chunk(table.column(name))) for name in names}
        columns["input_ids"] = view(one_chunk(tokens).flatten()).reshape(-1, length)
    except (pa.ArrowInvalid, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a shard of rows of {length} tokens ({error})") from None
    return columns


def view(array: pa.Array) -> NDArray[np.unsignedinteger]:
    """Return an array of numbers as numpy sees the same bytes (`to_numpy` would import pandas on every rank)."""
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    numbers: NDArray[np.unsignedinteger] = np.frombuffer(array.buffers()[1], np.dtype(str(array.type)))
    return numbers[array.offset : array.offset + len(array)]


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """Return a column's only chunk; shards are written as one record batch so that views need no copy."""
    if column.num_chunks != 1:
        raise ValueError(f"{column.num_chunks} record batches where a shard has one")
    return column.chunk(0)
