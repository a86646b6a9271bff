"""What `data inspect` reports."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.inspect import draw, histogram, inspect, render
from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.errors import UserError


def prepared(raw: Path, tokenizers: Path, folder: Path, row_format: str) -> Path:
    overrides = [
        f"sources.dump.path={raw / 'dump.xml'}",
        f"sources.books.path={raw / 'books'}",
        f"tokenizer={tokenizers / 'bert'}",
        f"output={folder}",
        f"format={row_format}",
    ]
    prepare(load_recipe("data-tiny", overrides, PrepareRecipe), Console(quiet=True))
    return folder


@pytest.mark.parametrize("row_format", ["pairs", "packed"])
def test_report(raw: Path, tokenizers: Path, tmp_path: Path, row_format: str) -> None:
    folder = prepared(raw, tokenizers, tmp_path / "out", row_format)
    manifest = read_manifest(folder)
    report = json.loads(json.dumps(inspect(folder)))
    assert report["intact"]
    assert report["problems"] == []
    for split, counts in manifest.splits.items():
        numbers = report["splits"][split]
        assert (numbers["documents"], numbers["rows"], numbers["tokens"]) == (
            counts.documents,
            counts.rows,
            counts.tokens,
        )
        assert numbers["fill"] == pytest.approx(manifest.fill(split))
        assert sum(bin_["rows"] for bin_ in numbers["length_histogram"]) == counts.rows
        assert 20 < numbers["distinct_tokens"] <= manifest.vocabulary_size
        assert 0 <= numbers["unknown_share"] < 0.1
        assert len(numbers["samples"]) == 2
        assert sum(numbers["rows_by_length"].values()) == counts.rows
        top = numbers["top_tokens"]
        assert [one["count"] for one in top] == sorted((one["count"] for one in top), reverse=True)
        assert not {"[CLS]", "[SEP]", "[PAD]"} & {one["token"] for one in top}
        assert bool(numbers["around_unknown"]) == (numbers["unknown_share"] > 0)
        assert all("[UNK]" in text for text in numbers["around_unknown"])
    sample = report["splits"]["train"]["samples"][0]
    assert "[CLS]" in (sample["first"] if row_format == "pairs" else sample["text"])
    assert ("random_next_share" in report["splits"]["train"]) == (row_format == "pairs")
    draw(report, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    output = io.StringIO()
    render(report, Console(file=output, width=300))
    text = output.getvalue()
    assert "every shard has the manifest's SHA-256" in text
    assert "2 disambiguation" in text
    assert f"{manifest.splits['train'].rows:,}" in text


def test_damage_is_reported_and_left_out(raw: Path, tokenizers: Path, tmp_path: Path) -> None:
    folder = prepared(raw, tokenizers, tmp_path / "out", "packed")
    shards = read_manifest(folder).splits["train"].shards
    flipped = folder / shards[0].file
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 0xFF
    flipped.write_bytes(bytes(content))
    (folder / shards[1].file).unlink()
    report = inspect(folder)
    assert not report["intact"]
    assert len(report["problems"]) == 2
    assert "SHA-256" in report["problems"][0]
    assert report["problems"][1] == "train/shard-00001.arrow: missing"
    output = io.StringIO()
    render(report, Console(file=output))
    assert "DAMAGED" in output.getvalue()


def test_a_folder_that_was_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a prepared folder"):
        inspect(tmp_path)


def test_histogram_covers_every_length() -> None:
    lengths = np.zeros(33, np.int64)
    lengths[[1, 5, 32]] = (2, 3, 4)
    bins = histogram(lengths)
    assert (bins[0]["from"], bins[-1]["to"]) == (1, 32)
    assert [bin_["rows"] for bin_ in bins] == [2, 3, 0, 0, 0, 0, 0, 4]
    assert histogram(np.array([0, 1, 1])) == [
        {"from": 1, "to": 1, "rows": 1},
        {"from": 2, "to": 2, "rows": 1},
    ]
