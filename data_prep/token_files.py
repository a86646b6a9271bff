"""Tokenized documents on the disk: one Arrow file for each unit of a source."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.arrow import as_arrow, as_numpy
from data_prep.documents import Document, Drop, Fault, Tokens
from data_prep.tokens import token_type
from sparse_pretrain.errors import FailedError
from sparse_pretrain.files import atomic_path

# Tokens of a record batch; what a reader and a writer hold at a time.
BATCH_TOKENS = 1_000_000
SAMPLES = 3
COUNTS = b"counts"


class TokenFileWriter:
    """Writes one unit's documents; the file appears when the context ends well."""

    def __init__(self, path: Path, vocabulary_size: int) -> None:
        """Write nothing yet."""
        self._path = path
        self._type = pa.from_numpy_dtype(token_type(vocabulary_size))
        self._schema = pa.schema(
            {
                "identity": pa.uint64(),
                "characters": pa.int64(),
                "tokens": pa.large_list(self._type),
                "sentence_ends": pa.large_list(pa.int32()),
                "bands": pa.list_(pa.uint64()),
            }
        )
        self._rows: dict[str, list[Any]] = {}
        self._tokens = self._all_tokens = 0
        self._dropped: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._samples: dict[str, list[str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "TokenFileWriter":
        temporary = self._stack.enter_context(atomic_path(self._path))
        self._sink = self._stack.enter_context(pa.OSFile(str(temporary), "wb"))
        self._writer = self._stack.enter_context(pa.ipc.new_file(self._sink, self._schema))
        return self

    def add(
        self,
        identity: int,
        characters: int,
        tokens: Tokens,
        sentence_ends: NDArray[np.int64],
        bands: NDArray[np.uint64] | None,
    ) -> None:
        """Append a document; see `Document`, and `near_duplicates` for the bands."""
        for name, value in (
            ("identity", identity),
            ("characters", characters),
            ("tokens", tokens),
            ("sentence_ends", sentence_ends),
            ("bands", bands),
        ):
            self._rows.setdefault(name, []).append(value)
        self._tokens += len(tokens)
        self._all_tokens += len(tokens)
        if self._tokens >= BATCH_TOKENS:
            self._flush()

    def drop(self, reason: Drop, sample: str) -> None:
        """Count a dropped document, and keep the first of each reason as samples."""
        self._dropped[reason.value] += 1
        samples = self._samples.setdefault(reason.value, [])
        if len(samples) < SAMPLES:
            samples.append(" ".join(sample.split()))

    def note(self, fault: Fault) -> None:
        """Count damage of the source."""
        self._faults[fault.value] += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
            counts = {
                "tokens": self._all_tokens,
                "dropped": dict(sorted(self._dropped.items())),
                "faults": dict(sorted(self._faults.items())),
                "samples": dict(sorted(self._samples.items())),
            }
            # The counts travel in a last, empty batch: the schema was written before they were known.
            empty = pa.record_batch([pa.nulls(0, field.type) for field in self._schema], self._schema)
            self._writer.write_batch(empty, custom_metadata={COUNTS: json.dumps(counts)})
        self._stack.__exit__(kind, error, traceback)

    def _flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows, self._tokens = self._rows, {}, 0
        columns = [
            as_arrow(np.array(rows["identity"], np.uint64)),
            as_arrow(np.array(rows["characters"], np.int64)),
            list_array(rows["tokens"], self._type),
            list_array(rows["sentence_ends"], pa.int32()),
            bands_array(rows["bands"]),
        ]
        self._writer.write_batch(pa.record_batch(columns, self._schema))


def list_array(values: list[NDArray[Any]], kind: pa.DataType) -> pa.Array:
    """Return arrays of numbers as one Arrow column of lists."""
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    joined = np.concatenate(values).astype(kind.to_pandas_dtype(), copy=False)
    return pa.LargeListArray.from_arrays(as_arrow(offsets), as_arrow(joined))


def bands_array(bands: list[NDArray[np.uint64] | None]) -> pa.Array:
    """Return the bands of documents as an Arrow column; nulls where they were not asked for."""
    given = [one for one in bands if one is not None]
    if not given:
        return pa.nulls(len(bands), pa.list_(pa.uint64()))
    offsets = np.cumsum([0, *map(len, given)], dtype=np.int32)
    return pa.ListArray.from_arrays(as_arrow(offsets), as_arrow(np.concatenate(given)))


def read_counts(path: Path) -> dict[str, Any]:
    """Return `dropped`, `faults` and `samples` of a unit."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        _, metadata = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
        counts: dict[str, Any] = json.loads(metadata[COUNTS])
        return counts


def read_columns(path: Path, *names: str) -> dict[str, pa.ChunkedArray]:
    """Return some columns of a unit, copied out of the file."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        table = pa.Table.from_batches(
            [reader.get_batch(at).select(list(names)) for at in range(reader.num_record_batches)]
        )
        return {name: table.column(name) for name in names}


def read_documents(path: Path) -> Iterator[Document]:
    """Yield a unit's documents, a record batch at a time; arrays are views of the mapped file.

    Raises:
        FailedError: the file is damaged.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for number in range(reader.num_record_batches):
            yield from documents_of(reader.get_batch(number))
    except (pa.ArrowException, OSError) as error:
        raise FailedError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); delete the folder and run again"
        ) from None


def documents_of(batch: pa.RecordBatch) -> Iterator[Document]:
    """Yield the documents of a record batch."""
    identities = batch.column("identity").to_pylist()
    characters = batch.column("characters").to_pylist()
    tokens, ends = batch.column("tokens"), batch.column("sentence_ends")
    token_values, end_values = as_numpy(tokens.values), as_numpy(ends.values).astype(np.int64)
    token_offsets, end_offsets = as_numpy(tokens.offsets).tolist(), as_numpy(ends.offsets).tolist()
    for at, (identity, length) in enumerate(zip(identities, characters, strict=True)):
        yield Document(
            identity,
            length,
            token_values[token_offsets[at] : token_offsets[at + 1]],
            end_values[end_offsets[at] : end_offsets[at + 1]],
        )
