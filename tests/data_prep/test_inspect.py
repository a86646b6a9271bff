"""What `data inspect` reports."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.inspect import draw, histogram, inspect, render
from data_prep.inspect_masking import TRAINING_SEED, masked, text_pieces
from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from data_prep.tokenizer import load_tokenizer
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.order import epochs_and_samples
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.errors import UserError


def prepared(raw: Path, tokenizers: Path, folder: Path, row_format: str, *changes: str) -> Path:
    overrides = [
        f"sources.dump.path={raw / 'dump.xml'}",
        f"sources.books.path={raw / 'books'}",
        f"tokenizer={tokenizers / 'bert'}",
        f"output={folder}",
        f"format={row_format}",
        *changes,
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
    seen = sample["masked"]
    assert seen["predicted"]
    for one in seen["predicted"]:
        assert seen["text"][one["start"] : one["end"]] == one["shown"].removeprefix("##")
        assert (one["shown"] == "[MASK]") == (one["how"] == "mask")
        assert (one["shown"] == one["token"]) == (one["how"] == "kept")
    draw(report, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    output = io.StringIO()
    render(report, Console(file=output, width=300))
    text = output.getvalue()
    assert "every shard has the manifest's SHA-256" in text
    assert "2 disambiguation" in text
    assert f"as trained: {seen['text']}\n" in text
    assert f"to predict: {seen['predicted'][0]['shown']} = {seen['predicted'][0]['token']}" in text
    coloured = io.StringIO()
    render(report, Console(file=coloured, width=300, force_terminal=True, color_system="standard"))
    assert "\x1b[1;31m[MASK]\x1b[0m" in coloured.getvalue()
    assert f"{manifest.splits['train'].rows:,}" in text


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_masked_positions_are_those_of_the_first_training_epoch(
    raw: Path, tokenizers: Path, tmp_path: Path, name: str
) -> None:
    folder = prepared(raw, tokenizers, tmp_path / "out", "packed", f"tokenizer={tokenizers / name}")
    split = PreparedSplit(folder, "train")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    table = TokenTable.of(tokenizer.tokenizer, split.manifest.special_tokens, split.manifest.vocabulary_size)
    rows = len(split)
    loader = TrainingLoader(split, Slice(rows, rows, 0, 1), MaskingSection(), table, TRAINING_SEED, False)
    batch = loader.next_step()[0]
    _, order = epochs_and_samples(0, rows, rows, split.manifest.fingerprint, TRAINING_SEED)
    for sample in (0, rows - 1):
        row = split.gather(np.array([sample]))
        seen = masked(row.tokens[0], int(row.lengths[0]), sample, table, tokenizer)
        at = order.tolist().index(sample)
        width = batch.input_ids.shape[1]
        positions = batch.positions.numpy()
        trained = positions[(positions >= at * width) & (positions < (at + 1) * width)] - at * width
        assert [one["position"] for one in seen["predicted"]] == trained.tolist()
        shown = [tokenizer.tokenizer.convert_tokens_to_ids(one["shown"]) for one in seen["predicted"]]
        assert shown == batch.input_ids[at, trained].tolist()


def test_sequences_of_a_row_are_shown_one_by_one(raw: Path, tokenizers: Path, tmp_path: Path) -> None:
    folder = prepared(raw, tokenizers, tmp_path / "out", "packed_pairs")
    report = inspect(folder)
    train = report["splits"]["train"]
    split = PreparedSplit(folder, "train")
    assert train["sequences"] == split.gather(np.arange(len(split))).sequences.sum()
    assert 0 < train["random_next_share"] < 1
    for sample in train["samples"]:
        for one in sample["sequences"]:
            assert one["first"].startswith("[CLS]")
            assert one["second"].endswith("[SEP]")
            assert "[CLS]" not in one["second"]
    output = io.StringIO()
    render(report, Console(file=output, width=200))
    shown = train["samples"][0]["sequences"]
    assert all(f"second: {one['second']}" in output.getvalue() for one in shown)


def test_text_pieces_are_the_text(tokenizers: Path) -> None:
    """Also where a character is several tokens of a byte-level vocabulary."""
    for name in ("bert", "roberta"):
        tokenizer = load_tokenizer(str(tokenizers / name))
        tokens = tokenizer.tokenizer("The river 東京 crosses the café.", add_special_tokens=False)[
            "input_ids"
        ]
        pieces = text_pieces(tokens, tokenizer)
        assert len(pieces) == len(tokens)
        assert "".join(pieces) == tokenizer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert " river" in pieces


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
