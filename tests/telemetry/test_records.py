"""What a run records of its steps and mask updates: metrics.jsonl, TensorBoard, the progress line."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.update import LayerUpdate, MaskUpdate
from sparse_pretrain.telemetry.console import ConsoleProgress, describe_step
from sparse_pretrain.telemetry.mask_numbers import common_threshold, mean_dead_rows
from sparse_pretrain.telemetry.metrics_log import MetricsLog
from sparse_pretrain.telemetry.tensorboard import TensorBoardWriter
from sparse_pretrain.training.callback import Callback, StepReport

MASKS = MaskSet.dense({"a": torch.Size([2]), "b": torch.Size([2])})
DISTILLED: dict[str, Any] = {
    "kd_loss": 1.5,
    "kd_parts": {"logits": 1.0, "hidden": 0.5},
    "temperature": 2.0,
    "teacher_agreement": 0.75,
}


def report(step: int, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "loss": 2.0,
        "mlm_loss": 3.0,
        "nsp_loss": None,
        "kd_loss": None,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "sparsity": None,
        "real_tokens": 100.0,
        "seconds": 0.5,
        "applied": True,
    }
    return StepReport(step=step, **(values | changes))


def update(step: int, a: float | None, b: float | None, froze: bool = False) -> MaskUpdate:
    """Two weights, with these thresholds."""
    layers = {"a": LayerUpdate(0.5, a, 10, 2, 0.25), "b": LayerUpdate(0.75, b, 20, 3, 0.0)}
    return MaskUpdate(step, 0.6, 0.625, layers, froze)


def records(folder: Path, *events: StepReport | MaskUpdate, every: int = 10) -> list[dict[str, Any]]:
    """Return the rows of a metrics file that heard these events of a run of 100 steps."""
    log = MetricsLog(folder / "metrics.jsonl", every)
    tell(log, *events)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tell(listener: Callback, *events: StepReport | MaskUpdate) -> None:
    listener.on_start(0, 100)
    for event in events:
        if isinstance(event, StepReport):
            listener.on_step(event)
        else:
            listener.on_masks(event, MASKS)
    listener.on_end()


def scalars(
    folder: Path, *events: StepReport | MaskUpdate, every: int = 10
) -> dict[str, list[tuple[int, float]]]:
    """Return steps and values by tag that TensorBoard would show after these events."""
    tell(TensorBoardWriter(folder, every), *events)
    read = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_a_row_has_every_number_of_the_step_and_no_other(tmp_path: Path) -> None:
    plain, distilled = records(tmp_path, report(10), report(20, **DISTILLED, sparsity=0.5, skipped=3))
    assert plain.pop("time") > 0
    assert plain == {
        "kind": "train",
        "step": 10,
        "loss": 2.0,
        "mlm_loss": 3.0,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "tokens_per_second": 200.0,
        "skipped": 0,
    }
    added = {key: distilled[key] for key in distilled.keys() - plain.keys() - {"time"}}
    assert added == {
        "kd_loss": 1.5,
        "kd_logits": 1.0,
        "kd_hidden": 0.5,
        "temperature": 2.0,
        "teacher_agreement": 0.75,
        "sparsity": 0.5,
    }
    assert distilled["skipped"] == 3


def test_a_skipped_update_is_written_whenever_it_happens(tmp_path: Path) -> None:
    steps = [report(1), report(2), report(13, loss=math.nan, applied=False, skipped=1), report(20, skipped=1)]
    rows = records(tmp_path, *steps)
    assert [(row["step"], row.get("applied", True), row["skipped"]) for row in rows] == [
        (1, True, 0),
        (13, False, 1),
        (20, True, 1),
    ]
    assert rows[1]["loss"] is None


def test_every_line_is_json_that_other_programs_read(tmp_path: Path) -> None:
    """NaN and Infinity are no JSON: a strict reader would choke on the very rows that matter."""
    records(tmp_path, report(10, loss=math.nan, gradient_norm=math.inf), update(10, math.nan, 0.5))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_mask_row_has_totals_and_every_weight(tmp_path: Path) -> None:
    (row,) = records(tmp_path, update(20, 0.1, 0.2, froze=True))
    assert row.pop("time") > 0
    assert row == {
        "kind": "masks",
        "step": 20,
        "target_sparsity": 0.6,
        "sparsity": 0.625,
        "pruned": 30,
        "regrown": 5,
        "dead_rows": 0.125,
        "frozen": True,
        "layers": {
            "a": {"sparsity": 0.5, "threshold": 0.1, "pruned": 10, "regrown": 2, "dead_rows": 0.25},
            "b": {"sparsity": 0.75, "threshold": 0.2, "pruned": 20, "regrown": 3, "dead_rows": 0.0},
        },
    }


@pytest.mark.parametrize(
    ("thresholds", "expected"),
    [
        ((0.1, 0.1), 0.1),
        ((0.1, 0.2), None),
        ((0.1, None), None),
        ((None, None), None),
        ((math.nan, math.nan), None),
    ],
)
def test_a_threshold_of_all_weights_stands_in_the_totals(
    tmp_path: Path, thresholds: tuple[float | None, float | None], expected: float | None
) -> None:
    assert common_threshold(update(0, *thresholds)) == expected
    (row,) = records(tmp_path, update(20, *thresholds))
    assert row.get("threshold") == expected


def test_a_second_start_from_the_beginning_leaves_every_row_once(tmp_path: Path) -> None:
    """Killed before its first checkpoint: the masks of step 0 are written again."""
    first = (update(0, 0.1, 0.1), report(1), report(10))
    records(tmp_path, *first)
    rows = records(tmp_path, *first)
    assert [(row["kind"], row["step"]) for row in rows] == [("masks", 0), ("train", 1), ("train", 10)]
    scalars(tmp_path / "tensorboard", *first)
    # A file's name holds the second of its start.
    for path in (tmp_path / "tensorboard").iterdir():
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    shown = scalars(tmp_path / "tensorboard", *first)
    assert shown["pruning/target_sparsity"] == [(0, pytest.approx(0.6))]
    assert shown["loss/total"] == [(1, 2.0), (10, 2.0)]


def test_weights_that_diverge_have_histograms_or_none_and_no_error(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, 10)
    writer.on_start(0, 100)
    writer.on_weight(1, "a", torch.tensor([math.nan, 1.0, math.inf, 2.0]))
    writer.on_weight(1, "b", torch.full((4,), 1e30))
    writer.on_weight(1, "c", torch.full((4,), math.nan))
    writer.on_end()
    shown = EventAccumulator(str(tmp_path)).Reload()
    counts = {tag: shown.Histograms(tag)[0].histogram_value.num for tag in shown.Tags()["histograms"]}
    assert counts == {"weights/a": 3, "weights/b": 4}


def test_the_first_and_the_last_step_are_recorded_everywhere(tmp_path: Path) -> None:
    steps = [report(step) for step in (1, 2, 30, 99, 100)]
    assert [row["step"] for row in records(tmp_path, *steps, every=30)] == [1, 30, 100]
    shown = scalars(tmp_path / "tensorboard", *steps, every=30)
    assert [step for step, _ in shown["loss/total"]] == [1, 30, 100]


def test_an_update_of_no_weights_has_no_dead_rows() -> None:
    assert mean_dead_rows(MaskUpdate(0, 0.0, 0.0, {}, False)) is None


def test_tensorboard_shows_the_step_and_every_skipped_update(tmp_path: Path) -> None:
    steps = [report(10, **DISTILLED), report(13, applied=False, skipped=1), report(14), report(20, skipped=1)]
    shown = scalars(tmp_path, *steps)
    assert shown["train/skipped_updates"] == [(10, 0.0), (13, 1.0), (20, 1.0)]
    assert shown["train/gradient_norm"] == [(10, 0.5), (13, 0.5), (20, 0.5)]
    once = {
        "loss/kd": 1.5,
        "distillation/logits": 1.0,
        "distillation/hidden": 0.5,
        "distillation/temperature": 2.0,
        "distillation/teacher_agreement": 0.75,
    }
    assert {tag: shown[tag] for tag in once} == {tag: [(10, value)] for tag, value in once.items()}
    assert "pruning/sparsity" not in shown


def test_tensorboard_shows_what_an_update_did_to_every_weight(tmp_path: Path) -> None:
    shown = scalars(tmp_path, update(0, None, None), update(10, 0.25, math.nan), update(20, 0.5, 0.5))
    # Its own curve while thresholds differ, one for all when they don't, none when there is no number.
    assert shown["threshold/a"] == [(10, 0.25)]
    assert shown["pruning/threshold"] == [(20, 0.5)]
    assert "threshold/b" not in shown
    of_each_update = {
        "pruning/target_sparsity": 0.6,
        "pruning/pruned": 30.0,
        "pruning/regrown": 5.0,
        "pruning/dead_rows": 0.125,
        "sparsity/b": 0.75,
        "pruned/b": 20.0,
        "regrown/b": 3.0,
        "dead_rows/a": 0.25,
    }
    for tag, value in of_each_update.items():
        assert shown[tag] == [(step, pytest.approx(value)) for step in (0, 10, 20)]


@pytest.mark.parametrize(
    ("skipped", "expected"), [(0, None), (1, "1 update skipped"), (1200, "1,200 updates skipped")]
)
def test_the_progress_line_says_how_many_updates_were_skipped(skipped: int, expected: str | None) -> None:
    line = describe_step(report(5, skipped=skipped, kd_loss=1.5), 1234.0)
    assert line.startswith("loss 2.000  mlm 3.000  kd 1.500  ")
    assert line.endswith("1,234 tokens/s")
    assert (expected in line) if expected else ("skipped" not in line)


def test_the_console_says_at_which_sparsity_masks_froze() -> None:
    """The sparsity that the masks have, not the one that was asked for."""
    out = io.StringIO()
    tell(ConsoleProgress(Console(file=out), "prune"), update(10, 0.1, 0.1), update(20, 0.1, 0.1, froze=True))
    assert out.getvalue().splitlines() == ["prune step 20: masks frozen at 62.50% sparsity"]
