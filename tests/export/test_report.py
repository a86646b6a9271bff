"""The report: numbers that can be checked by hand, and sentences that claim no more than was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig
from typer.testing import CliRunner

from sparse_pretrain.checkpoint.tensor_file import LazyTensor
from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.bitmask import plan_file
from sparse_pretrain.export.compression import encoder_compression
from sparse_pretrain.export.forms import ENGINES
from sparse_pretrain.export.report import accuracy, label_sources
from sparse_pretrain.export.report_card import findings, size_table
from sparse_pretrain.export.source import Source
from sparse_pretrain.export.timing import Pace, side_by_side, summary
from sparse_pretrain.files import write_json
from tests.export.models import classifier_folder

QUIET = Console(quiet=True)


def test_bert_large_at_90_percent_in_int8_is_40_times_smaller_as_the_paper_counts() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(4096, 1024)
    matrix.view(-1)[torch.randperm(matrix.numel())[: round(0.9 * matrix.numel())]] = 0.0
    tensors = {"w": LazyTensor(matrix.dtype, matrix.shape, lambda: matrix)}
    _, facts = plan_file(Source(Path(), AutoConfig.for_model("bert"), tensors, None, ["w"]), "int8", QUIET)
    found = encoder_compression(matrix.numel(), facts["kept_weights"], 8, facts["prunable_bytes"])
    assert found.as_the_paper_counts == pytest.approx(40.0, rel=1e-4)
    # 32 / (0.1 x 8 + 1)
    assert found.with_index == pytest.approx(17.78, rel=1e-3)
    assert 0.97 * found.with_index < found.on_disk < found.with_index


def test_calls_alternate_and_the_order_turns_around() -> None:
    order: list[str] = []
    ticks = iter(range(100))
    runs = {name: lambda batch, name=name: order.append(name) or [] for name in ("dense", "sparse")}
    seconds = side_by_side(runs, {}, Pace(rounds=3, least_rounds=1, seconds=99), lambda: float(next(ticks)))
    assert order == ["dense", "sparse", "dense", "sparse", "sparse", "dense", "dense", "sparse"]
    assert {name: len(values) for name, values in seconds.items()} == {"dense": 3, "sparse": 3}
    ticks = iter(range(0, 1000, 10))
    assert len(side_by_side(runs, {}, Pace(30, 2, 5.0), lambda: float(next(ticks)))["dense"]) == 2
    assert summary([0.1, 0.3, 0.2], 4) == pytest.approx(
        {"median_ms": 200, "fastest_ms": 100, "slowest_ms": 300, "inputs_per_second": 20, "calls": 3}
    )


def row(dense: tuple[float, float], sparse: tuple[float, float], calls: int = 9) -> dict[str, Any]:
    """A comparison: (median, fastest) of both."""
    return {
        "model": "sparse",
        "compared_with": "dense",
        "engine": "torch",
        "batch": 1,
        "length": 128,
        "dense": {"median_ms": dense[0], "fastest_ms": dense[1], "calls": calls},
        "sparse": {"median_ms": sparse[0], "fastest_ms": sparse[1], "calls": calls},
        "speedup": dense[0] / sparse[0],
    }


def test_no_speed_is_said_plainly_with_what_would_give_some() -> None:
    text = " ".join(findings({"times": [row((10.0, 9.0), (10.1, 9.0))]}))
    assert "On this machine the zeros give no speed" in text
    assert "2:4" in text
    assert "faster:" not in text


def test_a_median_alone_is_no_speed() -> None:
    """Other work on the machine slowed dense calls; the fastest of both are the same."""
    text = " ".join(findings({"times": [row((20.0, 9.0), (10.0, 9.0))]}))
    assert "no speed" in text
    assert "faster:" not in text
    text = " ".join(findings({"times": [row((20.0, 19.0), (10.0, 9.0))]}))
    assert "More than 10% faster: torch, batch 1, length 128 (2.00 x)" in text
    assert "no speed" not in text
    assert "slower: torch" in " ".join(findings({"times": [row((10.0, 9.0), (20.0, 19.0))]}))


def test_a_few_calls_say_nothing() -> None:
    (sentence,) = findings({"times": [row((20.0, 19.0), (10.0, 9.0), calls=2)]})
    assert sentence.startswith("Too few calls")


def test_labels_are_short_and_never_the_same() -> None:
    assert label_sources(["runs/sst2/model", "runs/dense/model/", "a/b", "c/b"]) == [
        "sst2-model", "dense-model", "b", "b-4",
    ]  # fmt: skip


def test_accuracy_is_what_fine_tuning_wrote_or_not_known(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "model")
    assert accuracy(str(tmp_path / "model")) is None
    write_json(tmp_path / "metrics.json", {"metric": "accuracy", "score": 0.9})
    found = accuracy(str(tmp_path / "model"))
    assert found is not None
    assert (found["metric"], found["score"]) == ("accuracy", 0.9)


@pytest.mark.slow
def test_a_quick_report_of_dense_and_sparse_has_every_number(tmp_path: Path) -> None:
    for name, sparsity in (("sparse", 0.9), ("dense", 0.0)):
        classifier_folder(tmp_path / name, masks=False, sparsity=sparsity)
    folders = [str(tmp_path / "sparse"), str(tmp_path / "dense")]
    out = tmp_path / "report"
    done = CliRunner().invoke(
        app, ["export", "report", *folders, "--output", str(out), "--quick", "--threads", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "report.json").read_text())
    assert json.loads(done.stdout) == facts
    sparse, dense = facts["models"]
    assert (sparse["sparsity"], dense["sparsity"]) == (pytest.approx(0.9, abs=2e-3), 0.0)
    assert (
        sparse["bytes"]["bitmask fp32"]
        < sparse["bytes"]["safetensors dense"]
        == dense["bytes"]["safetensors dense"]
    )
    assert set(sparse["agreement"]) == set(ENGINES[1:])
    assert sparse["agreement"]["onnxruntime"]["same_answer"] == 1.0
    times = facts["times"]
    assert {row["compared_with"] for row in times} == {"dense"}
    assert {(row["engine"], row["batch"], row["length"]) for row in times} == {
        (engine, batch, length) for engine in ENGINES for batch in (1, 2) for length in (16, 32)
    }
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "sparsity x bits (the paper's count)" in text
    assert facts["findings"][0] in text
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "report.png"}


def test_the_task_metric_of_every_engine_is_a_row() -> None:
    model = {
        "label": "a",
        "sparsity": 0.9,
        "bytes": {},
        "task_metric": {"scores": {"onnxruntime int8": 0.75}},
    }
    rows = size_table({"models": [model, {"label": "b", "sparsity": 0.0, "bytes": {}}]})
    assert "| task metric by onnxruntime int8 | 0.7500 |  |" in rows


def test_a_report_of_nothing_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "report", str(tmp_path), "--output", str(tmp_path / "out")])
    assert isinstance(done.exception, UserError)
    assert "no model here" in str(done.exception)
    assert not (tmp_path / "out" / ".scratch").exists()
