"""Pictures of a run: what is drawn, not how it looks."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sparse_pretrain.telemetry.drawing import DOTS_PER_INCH, running_mean
from sparse_pretrain.telemetry.mask_pictures import (
    draw_dead_rows,
    draw_flips,
    draw_layers,
    draw_thresholds,
)
from sparse_pretrain.telemetry.metrics import read_rows, series
from sparse_pretrain.telemetry.plots import plot_run
from sparse_pretrain.telemetry.step_pictures import (
    draw_distillation,
    draw_gradient,
    draw_losses,
    draw_schedule,
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


def complete_rows(shared: bool = False) -> list[Row]:
    """The rows above with all that newer runs record; the first of three updates has pruned nothing."""
    rows = pruning_rows()
    masks = [row for row in rows if row["kind"] == "masks"]
    rows.insert(0, {**masks[0], "step": 0, "layers": {name: dict(EMPTY) for name in WEIGHTS}})
    for row in rows:
        if row["kind"] == "train":
            row |= {"kd_logits": 2.0, "kd_hidden": 0.5, "temperature": 2.0, "teacher_agreement": 0.75}
            row |= {"gradient_norm": 1.5, "skipped": 1}
        if row["kind"] == "masks" and row["step"]:
            for number, layer in enumerate(row["layers"].values()):
                layer |= {"threshold": 0.1 if shared else 0.1 * number, "dead_rows": 0.01 * number}
    rows[5] |= {"applied": False, "gradient_norm": None}
    return rows


EMPTY = {"sparsity": 0.0, "threshold": None, "pruned": 0, "regrown": 0, "dead_rows": 0.0}


def write(folder: Path, rows: list[Row], tail: str = "") -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + tail)
    return folder


def lines(figure: Figure, axes: int) -> dict[str, list[float]]:
    return {str(line.get_label()): list(line.get_ydata()) for line in figure.axes[axes].lines}


ALL = [
    "losses.png",
    "schedule.png",
    "distillation.png",
    "gradient.png",
    "layers.png",
    "mask_flips.png",
    "thresholds.png",
    "dead_rows.png",
    "overview.png",
]


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_that_records_everything_gets_every_picture(tmp_path: Path, shared: bool) -> None:
    assert [path.name for path in plot_run(write(tmp_path, complete_rows(shared)))] == ALL


def panels(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[list[str]]:
    """Draw the run; return the titles in the overview by row."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), Path(path).touch()))
    plot_run(folder)
    overview = figures[-1]
    top = [figure.axes[0].get_title() for figure in overview.subfigs]
    return [top[: len(top) // 2], top[len(top) // 2 :]]


def test_the_overview_is_two_even_rows_of_what_the_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, lower = panels(monkeypatch, write(tmp_path, complete_rows()))
    assert upper == ["Losses", "Sparsity and learning rate", "Distillation at T = 2"]
    assert lower == ["Sparsity per layer at step 20", "Mask flips per update", "Pruning threshold"]
    alone = [
        {key: row[key] for key in row if "kd" not in key and "teach" not in key} for row in complete_rows()
    ]
    upper, lower = panels(monkeypatch, write(tmp_path, alone))
    assert upper == ["Losses", "Sparsity and learning rate", "Gradient norm"]
    assert len(lower) == 3
    old = [row | {"gradient_norm": 1.0} for row in pruning_rows()]
    assert [len(row) for row in panels(monkeypatch, write(tmp_path, old))] == [2, 2]


def test_an_older_runs_pictures_even_when_it_was_killed(tmp_path: Path) -> None:
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
        assert int.from_bytes(content[16:20], "big") >= 7 * DOTS_PER_INCH


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
    # 20 steps and, at steps 10 and 20, what the mask updates themselves say.
    assert lines(figure, 0)["actual"] == [0.4] * 10 + [0.84] + [0.85] * 10 + [0.84]
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


def test_distillation_shows_parts_agreement_and_a_temperature_that_changes() -> None:
    rows = complete_rows()
    figure = Figure()
    draw_distillation(figure, rows)
    assert {label: set(values) for label, values in lines(figure, 0).items()} == {
        "logits": {2.0},
        "hidden states": {0.5},
    }
    (agreement,) = lines(figure, 1).values()
    assert agreement == [0.75] * 20
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title() == "Distillation at T = 2"
    for row in rows:
        if row["kind"] == "train":
            row |= {"temperature": 1 + row["step"], "kd_hidden": 0.01, "kd_second/logits": 1.0}
    figure = Figure()
    draw_distillation(figure, rows)
    assert list(lines(figure, 0)) == ["logits", "hidden states", "second/logits"]
    assert figure.axes[0].get_yscale() == "log"
    assert next(iter(lines(figure, 2).values())) == [float(step + 1) for step in range(1, 21)]


def test_agreement_is_drawn_at_the_steps_that_measured_it() -> None:
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, 7)]
    for row in rows[2::3]:
        row["teacher_agreement"] = row["step"] / 10
    figure = Figure()
    draw_distillation(figure, rows)
    (line,) = figure.axes[0].lines
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[3, 6], [0.3, 0.6]]


@pytest.mark.parametrize("mark", [{"applied": False, "skipped": 4}, {"skipped": True}])
def test_skipped_updates_are_marked_beside_the_gradient_norm(mark: Row) -> None:
    """`skipped: true` is what older files say of the step itself; a count belongs to the run."""
    rows = [{"kind": "train", "step": step, "gradient_norm": 2.0, "skipped": 3} for step in range(1, 5)]
    rows[2] |= {"gradient_norm": None, **mark}
    figure = Figure()
    draw_gradient(figure, rows)
    norms, skipped = figure.axes[0].lines
    assert list(norms.get_xdata()) == [1, 2, 4]
    assert (list(skipped.get_xdata()), skipped.get_label()) == ([3], "1 skipped update")


def test_a_shared_threshold_is_one_line_from_the_first_pruning_on() -> None:
    figure = Figure()
    draw_thresholds(figure, complete_rows(shared=True))
    (line,) = figure.axes[0].lines
    assert (line.get_label(), list(line.get_xdata()), list(line.get_ydata())) == (
        "all weights",
        [10, 20],
        [0.1, 0.1],
    )


def test_thresholds_of_their_own_are_a_line_a_kind() -> None:
    """Queries have 0 and 0.2 (layers 0 and 1), outputs 0.1 and 0.3, the pooler 0.4."""
    figure = Figure()
    draw_thresholds(figure, complete_rows())
    drawn = {kind: values[-1] for kind, values in lines(figure, 0).items()}
    assert drawn == pytest.approx({"attention query": 0.1, "output": 0.2, "pooler": 0.4})
    bands = [
        band.get_datalim(figure.axes[0].transData).get_points()[:, 1] for band in figure.axes[0].collections
    ]
    assert [list(band) for band in bands] == [
        pytest.approx(ends) for ends in ([0, 0.2], [0.1, 0.3], [0.4, 0.4])
    ]


def test_dead_rows_are_a_mean_a_kind_and_the_worst_weight() -> None:
    figure = Figure()
    draw_dead_rows(figure, complete_rows())
    drawn = {kind: values[-1] for kind, values in lines(figure, 0).items()}
    assert drawn == pytest.approx(
        {"attention query": 0.01, "output": 0.02, "pooler": 0.04, "worst weight": 0.04}
    )


def test_one_broken_threshold_does_not_spoil_the_picture() -> None:
    rows = complete_rows()
    rows[-2]["layers"]["bert.pooler.dense.weight"]["threshold"] = float("nan")
    figure = Figure()
    draw_thresholds(figure, rows)
    assert lines(figure, 0)["pooler"] == [0.4]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [({"kd_logits": 2.0}, "loss [nats]"), ({"kd_logits": 2.0, "kd_hidden": 1.0}, "loss")],
)
def test_losses_are_nats_unless_distances_are_among_them(parts: dict[str, float], expected: str) -> None:
    figure = Figure()
    draw_losses(figure, [row | parts for row in pruning_rows() if row["kind"] == "train"])
    assert figure.axes[0].get_ylabel() == expected


def test_an_update_that_was_recorded_twice_still_has_bars() -> None:
    rows = [row for row in pruning_rows() if row["kind"] == "masks"]
    figure = Figure()
    draw_flips(figure, [rows[0], *rows])
    assert all(bar.get_width() > 0 for bar in figure.axes[0].patches)
