"""The pieces of the data benchmark, very small and in this process."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from sparse_pretrain.bench.data import QUICK, DataBenchSettings, loader_rate, take, time_resume
from sparse_pretrain.bench.data_child import measure_map, measure_prepare, measure_tokenize
from sparse_pretrain.bench.data_process import Measurement, Measurer
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.errors import FailedError
from tests.data_prep.corpus import prose, write_tokenizers


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a child process is given."""
    place = tmp_path_factory.mktemp("bench")
    text = place / "text.jsonl"
    text.write_text("".join(json.dumps({"text": prose(seed, 20)}) + "\n" for seed in range(100)))
    write_tokenizers(place / "tokenizers")
    return {"text": str(text), "tokenizer": str(place / "tokenizers" / "bert"), "workers": 1, "length": 64}


def test_both_ways_prepare_the_same_documents(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert measure_map({**arguments, "output": str(tmp_path / "map")})["seconds"] > 0
    rows = datasets.load_from_disk(str(tmp_path / "map" / "rows"))
    assert measure_prepare({**arguments, "output": str(tmp_path / "ours"), "work": None})["worker_bytes"] > 0
    manifest = read_manifest(tmp_path / "ours")
    ours = sum(counts.rows for counts in manifest.splits.values())
    # Draws differ, and so does what is held out.
    assert len(rows) == pytest.approx(ours, rel=0.15)
    assert {len(row) for row in rows["input_ids"]} == {64}


def test_the_loader_is_measured_on_packed_rows(arguments: dict[str, Any], tmp_path: Path) -> None:
    measure_prepare({**arguments, "output": str(tmp_path / "packed"), "work": None, "format": "packed"})
    assert loader_rate(tmp_path / "packed", DataBenchSettings(loader_steps=3)) > 0
    assert time_resume(tmp_path / "packed") < 1
    assert read_manifest(tmp_path / "packed").fill("train") >= 0.98


def test_tokenizing_is_timed_in_both_ways(arguments: dict[str, Any]) -> None:
    assert all(seconds > 0 for seconds in measure_tokenize(arguments).values())


def test_text_is_repeated_where_it_is_too_short(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "One."}) + "\n")
    lines = take(text, tmp_path / "more.jsonl", 0.0001).read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert len(set(texts)) == len(texts) > 2


def test_measurements_run_side_by_side_in_forks_and_a_failed_one_is_told(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    prepared = {**arguments, "output": str(tmp_path / "ours"), "work": None}
    tokens = [
        Measurement("tokenize", f"tokens-{part}", {**arguments, "part": part, "parts": 2}) for part in (0, 1)
    ]
    with Measurer(arguments["tokenizer"], tmp_path) as measurer:
        assert measurer.run([]) == []
        rows, *encoded = measurer.run([Measurement("prepare", "ours", prepared), *tokens])
        assert rows["worker_bytes"] > 0
        assert rows["core_seconds"] > 0
        assert all(one["raw_seconds"] > 0 for one in encoded)
        missing = {**prepared, "text": str(tmp_path / "no.jsonl"), "output": str(tmp_path / "nothing")}
        with pytest.raises(FailedError, match=r"\(prepare\) failed: UserError: .*no\.jsonl"):
            measurer.run([Measurement("prepare", "missing", missing)])


def test_the_quick_benchmark_measures_every_ratio_on_20_mb() -> None:
    assert QUICK.megabytes >= 20
    assert 8 * QUICK.memory_megabytes >= 20
    assert QUICK.one_run_for_both
    assert not DataBenchSettings().one_run_for_both
