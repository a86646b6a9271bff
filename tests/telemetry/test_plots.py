"""Pictures of a run: what is drawn, not how it looks."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sparse_pretrain.telemetry import plots
from sparse_pretrain.telemetry.metrics import read_rows, series
from sparse_pretrain.telemetry.plots import (
    draw_flips,
    draw_layers,
    draw_losses,
    draw_schedule,
    plot_run,
    running_mean,
)
from sparse_pretrain.telemetry.weight_names import place

Row = dict[str, Any]
LAYER = "bert.encoder.layer"
WEIGHTS = {
    f"{LAYER}.0.attention.self.query.weight": 0.8,
    f"{LAYER}.0.output.dense.weight": 0.9,
    f"{LAYER}.1.attention.self.query.weight": 0.7,
    f"{LAYER}.1.output.dense.weight": 0.6,
    "bert.pooler.dense.weight": 0.5,
}


def pruning_rows() -> list[Row]:
    rows: list[Row] = []
    for step in range(1, 21):
        sparsity = 0.85 if step > 10 else 0.4
        losses = {"loss": 3.0, "mlm_loss": 4.0 - step / 20, "kd_loss": 2.0}
        rate = 1e-3 * (1 - (step % 10) / 10)
        rows.append({"kind": "train", "step": step, **losses, "learning_rate": rate, "sparsity": sparsity})
        if step % 10 == 0:
            flips = {"pruned": 1000 // step, "regrown": 7}
            layers = {name: {"sparsity": value, **flips} for name, value in WEIGHTS.items()}
            rows.append(
                {
                    "kind": "masks",
                    "step": step,
                    "target_sparsity": 0.85,
                    "sparsity": 0.84,
                    **flips,
                    "layers": layers,
                }
            )
            rows.append({"kind": "evaluation", "step": step, "validation_mlm_loss": 3.5})
    return rows


def write(folder: Path, rows: list[Row], tail: str = "") -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder


def lines(figure: Figure, axes: int) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[axes].lines}


def test_a_pruning_run_gets_five_pictures_even_when_it_was_killed(tmp_path: Path) -> None:
    written = plot_run(write(tmp_path, pruning_rows(), tail='{"kind": "train", "st'))
    assert [path.name for path in written] == [
        "losses.png",
        "schedule.png",
        "layers.png",
        "mask_flips.png",
        "overview.png",
    ]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(
        path.name for path in written
    )
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert int.from_bytes(content[16:20], "big") >= 7 * plots.DOTS_PER_INCH


def test_a_dense_run_gets_losses_and_learning_rate(tmp_path: Path) -> None:
    rows = [{"kind": "train", "step": 1, "loss": 2.0, "mlm_loss": 2.0, "learning_rate": 1e-4}]
    assert [path.name for path in plot_run(write(tmp_path, rows))] == ["losses.png", "schedule.png"]


@pytest.mark.parametrize("content", [None, "", '{"kind": "tr'])
def test_no_metrics_no_pictures(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert plot_run(tmp_path) == []
    assert not (tmp_path / "plots").exists()


def test_a_failed_drawing_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, pruning_rows())
    old = plot_run(tmp_path)[0].read_bytes()

    def fail(self: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_run(tmp_path)
    assert (tmp_path / "plots" / "losses.png").read_bytes() == old
    assert len(list((tmp_path / "plots").iterdir())) == 5


def test_losses_show_every_part_and_the_held_out_points() -> None:
    figure = Figure()
    draw_losses(figure, pruning_rows())
    drawn = lines(figure, 0)
    assert list(drawn) == ["total", "masked words (MLM)", "distillation (KD)", "held-out MLM"]
    assert drawn["masked words (MLM)"][0] == pytest.approx(3.95)
    assert drawn["held-out MLM"] == [3.5, 3.5]


def test_a_single_loss_is_not_drawn_twice() -> None:
    figure = Figure()
    draw_losses(figure, [{"kind": "train", "step": 1, "loss": 2.0, "mlm_loss": 2.0}])
    assert list(lines(figure, 0)) == ["masked words (MLM)"]


def test_schedule_shows_the_saw_tooth_unsmoothed_and_both_sparsities() -> None:
    figure = Figure()
    draw_schedule(figure, pruning_rows())
    assert lines(figure, 0)["actual"] == [0.4] * 10 + [0.85] * 10
    assert lines(figure, 0)["target at mask updates"] == [0.85, 0.85]
    (rates,) = lines(figure, 1).values()
    assert rates[8:10] == pytest.approx([1e-4, 1e-3])


def test_layers_show_every_weight_once_from_the_last_update() -> None:
    figure = Figure()
    draw_layers(figure, pruning_rows())
    axes = figure.axes[0]
    bars = {(round(bar.get_x() + bar.get_width() / 2, 2), bar.get_height()) for bar in axes.patches}
    assert sorted(height for _, height in bars) == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert (2.0, 0.5) in bars  # the pooler's only bar stands in the middle of its place
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "pooler"]
    assert "step 20" in axes.get_title()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(labels) == {"overall 84.0%", "attention query", "output", "pooler"}


def test_flips_are_counted_per_update() -> None:
    figure = Figure()
    draw_flips(figure, pruning_rows())
    pruned, regrown = figure.axes[0].containers
    assert [bar.get_height() for bar in pruned] == [100, 50]
    assert [bar.get_height() for bar in regrown] == [7, 7]
    assert figure.axes[0].get_yscale() == "log"


def test_an_update_without_flips_is_drawable(tmp_path: Path) -> None:
    rows = [row | {"pruned": 0, "regrown": 0} if row["kind"] == "masks" else row for row in pruning_rows()]
    assert len(plot_run(write(tmp_path, rows))) == 5


def test_running_mean_counts_fewer_at_the_start() -> None:
    assert running_mean([2.0, 4.0, 9.0, 2.0], 2) == [2.0, 3.0, 6.5, 5.5]


def test_a_skipped_step_leaves_a_gap_not_a_nan() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3}, {"step": 4, "loss": 1}]
    assert series(rows, "loss") == ([1, 4], [2.0, 1.0])


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n\xff{"st\n[1]\n{"loss": 1}\n{"step": 2}\n{"step": 3'
    )
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{LAYER}.3.attention.self.query.weight", ("3", "attention query")),
        (f"{LAYER}.11.attention.output.dense.weight", ("11", "attention output")),
        (f"{LAYER}.0.intermediate.dense.weight", ("0", "intermediate")),
        ("distilbert.transformer.layer.2.ffn.lin1.weight", ("2", "ffn lin1")),
        ("bert.pooler.dense.weight", ("pooler", "pooler")),
        ("dense.weight", ("dense weight", "dense weight")),
    ],
)
def test_weights_have_short_names(name: str, expected: tuple[str, str]) -> None:
    assert place(name) == expected
