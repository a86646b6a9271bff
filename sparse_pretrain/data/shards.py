"""Prepared rows, memory-mapped: training views them, it does not load them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparse_pretrain.data.manifest import (
    WITH_PAIRS,
    WITH_SEQUENCES,
    Manifest,
    RowFormat,
    Split,
    read_manifest,
)
from sparse_pretrain.data.ragged import Ragged, joined
from sparse_pretrain.errors import UserError

Numbers: TypeAlias = NDArray[np.int64]
Column: TypeAlias = NDArray[np.unsignedinteger[Any]] | Ragged


class Rows(NamedTuple):
    """Rows gathered from the shards.

    Attributes:
        tokens: int64 [rows, length], padded.
        lengths: int64 [rows], real tokens.
        second_start: int64 [sequences], first token of each second segment; None without pairs.
        random_next: int64 [sequences], NSP labels, 1 = does not follow; None without pairs.
        starts: each row's sequences by their first tokens, int64; None where a row is one sequence.
    """

    tokens: Numbers
    lengths: Numbers
    second_start: Numbers | None
    random_next: Numbers | None
    starts: Ragged | None = None

    @property
    def sequences(self) -> Numbers:
        """Sequences of each row, int64 [rows]."""
        return np.ones_like(self.lengths) if self.starts is None else self.starts.counts


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
        self.has_pairs = self.manifest.has_pairs
        self._columns: list[dict[str, Column]] = []
        for shard in counts.shards:
            path = folder / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                found = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
                raise UserError(
                    f"{path}: {found}, the manifest says {shard.bytes} bytes; prepare the data again"
                )
            self._columns.append(map_shard(path, self.manifest.sequence_length, self.manifest.format))
        self._ends = np.cumsum([shard.rows for shard in counts.shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, samples: Numbers) -> Rows:
        """Copy the given rows out of the maps, in the given order."""
        return rows_of(self.columns(samples))

    def columns(self, samples: Numbers) -> dict[str, Column]:
        """Copy the columns of the given rows, in the given order."""
        shard_of = np.searchsorted(self._ends, samples, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        found = []
        places = []
        for shard in np.unique(shard_of).tolist():
            chosen = np.flatnonzero(shard_of == shard)
            places.append(chosen)
            rows = samples[chosen] - starts[shard]
            found.append(take_rows(self._columns[shard], rows))
        return ordered(found, places)


def rows_of(columns: dict[str, Column]) -> Rows:
    """Name the columns of rows."""
    values = {name: values_of(column).astype(np.int64) for name, column in columns.items()}
    starts = columns.get("sequence_start")
    return Rows(
        values["input_ids"],
        values["length"],
        values.get("second_start"),
        values.get("random_next"),
        starts._replace(values=values["sequence_start"]) if isinstance(starts, Ragged) else None,
    )


def ordered(parts: Sequence[Mapping[str, Column]], places: Sequence[Numbers]) -> dict[str, Column]:
    """Return the rows of several parts as one.

    Args:
        parts: columns by name, the same in each.
        places: where the rows of each part belong; together every number from 0 on.
    """
    order = np.argsort(np.concatenate(places))
    return {name: take(join([part[name] for part in parts]), order) for name in parts[0]}


def values_of(column: Column) -> NDArray[np.unsignedinteger[Any]]:
    """Return all numbers of a column."""
    return column.flat if isinstance(column, Ragged) else column


def take_rows(columns: Mapping[str, Column], rows: Numbers) -> dict[str, Column]:
    """Copy the given rows of columns, in the given order."""
    return {name: take(column, rows) for name, column in columns.items()}


def take(column: Column, rows: Numbers) -> Column:
    """Copy the given rows of a column, in the given order."""
    return column.take(rows) if isinstance(column, Ragged) else column[rows]


def join(parts: Sequence[Column]) -> Column:
    """Return the parts of a column one after the other."""
    if len(parts) == 1:
        return parts[0]
    lists = [part for part in parts if isinstance(part, Ragged)]
    return (
        joined(lists) if lists else np.concatenate([part for part in parts if not isinstance(part, Ragged)])
    )


def map_shard(path: Path, length: int, row_format: RowFormat) -> dict[str, Column]:
    """Return the columns of an Arrow file as numpy views of the mapped bytes; `input_ids` as [rows, length]."""
    names = ["length"]
    names += ["second_start", "random_next"] if row_format in WITH_PAIRS else []
    names += ["sequence_start"] if row_format in WITH_SEQUENCES else []
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        columns = {name: view_column(one_chunk(table.column(name))) for name in names}
        columns["input_ids"] = view(one_chunk(table.column("input_ids")).flatten()).reshape(-1, length)
    except (pa.ArrowInvalid, KeyError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a shard of rows of {length} tokens ({error})") from None
    return columns


def view_column(array: pa.Array) -> Column:
    """Return numbers, or lists of numbers, as numpy sees the same bytes."""
    if isinstance(array, pa.ListArray):
        return Ragged(view(array.offsets), view(array.values))
    return view(array)


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
