"""Shards as training maps them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.rows import PackedRow, Row
from data_prep.shards import ShardWriter
from sparse_pretrain.data.manifest import RowFormat
from sparse_pretrain.data.shards import map_shard, rows_of, take_rows
from sparse_pretrain.files import sha256_file


def write(
    folder: Path, row_format: RowFormat, rows: int, dtype: type[np.uint16] | type[np.uint32]
) -> ShardWriter:
    writer = ShardWriter(folder, "train", row_format, 8, dtype, padding=9, rows_per_shard=4)
    for number in range(rows):
        size = 3 + number % 6
        writer.add(Row(np.arange(100 + number, 100 + number + size, dtype=dtype), 2, number % 2))
    writer.close()
    return writer


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("row_format", ["pairs", "packed"])
def test_rows_come_back(
    tmp_path: Path, row_format: RowFormat, dtype: type[np.uint16] | type[np.uint32]
) -> None:
    writer = write(tmp_path, row_format, 10, dtype)
    assert [shard.rows for shard in writer.shards] == [4, 4, 2]
    assert writer.rows == 10
    number = tokens = 0
    for shard in writer.shards:
        path = tmp_path / shard.file
        assert (path.stat().st_size, sha256_file(path)) == (shard.bytes, shard.sha256)
        columns = map_shard(path, 8, row_format)
        assert columns["input_ids"].dtype == dtype
        for row in range(shard.rows):
            size = 3 + number % 6
            assert columns["length"][row] == size
            expected = [*range(100 + number, 100 + number + size), *[9] * (8 - size)]
            assert columns["input_ids"][row].tolist() == expected
            if row_format == "pairs":
                assert (columns["second_start"][row], columns["random_next"][row]) == (2, number % 2)
            number, tokens = number + 1, tokens + size
    assert (number, tokens) == (10, writer.tokens)


def test_columns_are_the_contracts(tmp_path: Path) -> None:
    writer = write(tmp_path, "pairs", 4, np.uint16)
    schema = pa.ipc.open_file(str(tmp_path / writer.shards[0].file)).schema
    assert {field.name: str(field.type) for field in schema} == {
        "input_ids": "fixed_size_list<item: uint16>[8]",
        "length": "uint16",
        "second_start": "uint16",
        "random_next": "uint8",
    }


@pytest.mark.parametrize("row_format", ["packed_pairs", "packed_documents"])
def test_sequences_come_back(tmp_path: Path, row_format: RowFormat) -> None:
    writer = ShardWriter(tmp_path, "train", row_format, 8, np.uint16, padding=9, rows_per_shard=2)
    for number in range(5):
        parts = [
            Row(np.full(2 + part, 10 * number + part, np.uint16), 1, part) for part in range(number % 3 + 1)
        ]
        writer.add(PackedRow(tuple(parts[:2])))
    writer.close()
    assert [shard.rows for shard in writer.shards] == [2, 2, 1]
    number = 0
    for shard in writer.shards:
        rows = rows_of(
            take_rows(map_shard(tmp_path / shard.file, 8, row_format), np.arange(shard.rows)[::-1].copy())
        )
        assert rows.starts is not None
        for at in range(shard.rows):
            row = shard.rows - 1 - at
            two = number % 3 > 0
            assert rows.starts.row(row).tolist() == ([0, 2] if two else [0])
            text = [10 * number] * 2 + [10 * number + 1] * 3 * two
            assert rows.tokens[row].tolist() == text + [9] * (8 - len(text))
            assert rows.lengths[row] == len(text)
            number += 1
        if row_format == "packed_pairs":
            assert rows.random_next is not None
            assert rows.second_start is not None
            assert len(rows.random_next) == len(rows.second_start) == rows.sequences.sum()
            assert set(zip(rows.second_start.tolist(), rows.random_next.tolist(), strict=True)) <= {
                (1, 0),
                (3, 1),
            }
        else:
            assert rows.random_next is None
    assert number == 5


def test_no_rows_no_shard(tmp_path: Path) -> None:
    assert write(tmp_path, "packed", 0, np.uint16).shards == []
