"""Several seeds and sweeps: one table, resumable, with the zeros of every run proven."""

import json
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.campaign import campaign
from sparse_pretrain.finetune.train import finetune
from tests.finetune.models import recipe

QUIET = Console(quiet=True)


def test_seeds_give_mean_and_deviation_and_share_one_teacher(folder: Path, tmp_path: Path) -> None:
    sections = {"seeds": [1, 2, 3], "distillation": {"teacher": "auto", "dense": str(folder / "dense")}}
    settings = recipe(folder, tmp_path / "runs", sections=sections, epochs=1)
    console = Console(record=True, width=140)
    result = campaign(settings, sweep=False, console=console)
    (point,) = result["points"]
    scores = [
        json.loads((Path(run) / "metrics.json").read_text())["metrics"]["validation"]["accuracy"]
        for run in point["runs"]
    ]
    accuracy = point["metrics"]["validation"]["accuracy"]
    assert (point["seeds"], accuracy["values"]) == ([1, 2, 3], scores)
    assert accuracy["mean"] == pytest.approx(sum(scores) / 3)
    assert accuracy["deviation"] == pytest.approx(statistics.stdev(scores))
    assert point["nonzero_outside_masks"] == 0
    assert len(list((tmp_path / "teachers").iterdir())) == 1
    assert f"{accuracy['mean']:.4f} ± {accuracy['deviation']:.4f}" in console.export_text()
    assert json.loads((tmp_path / "runs" / "summary.json").read_text()) == result
    # The same command again only reads.
    stamps = [(Path(run) / "metrics.json").stat().st_mtime_ns for run in point["runs"]]
    assert campaign(settings, sweep=False, console=QUIET) == result
    assert stamps == [(Path(run) / "metrics.json").stat().st_mtime_ns for run in point["runs"]]
    other = settings.model_copy(update={"training": settings.training.model_copy(update={"epochs": 2})})
    with pytest.raises(UserError, match=r"another recipe \(training differs\)"):
        campaign(other, sweep=False, console=QUIET)
    with pytest.raises(UserError, match="holds several runs"):
        finetune(settings, QUIET)


def test_a_sweep_goes_on_where_it_was_cut_off_and_marks_the_best(folder: Path, tmp_path: Path) -> None:
    sections = {"sweep": {"learning_rate": [1e-6, 1e-2], "epochs": [1, 3]}}
    settings = recipe(folder, tmp_path / "sweep", sections=sections)
    result = campaign(settings, sweep=True, console=QUIET)
    assert (result["finished"], result["wanted"]) == (4, 4)
    best = result["points"][result["best"]]
    assert best["settings"] == {"learning_rate": 1e-2, "epochs": 3}
    lost, kept = (Path(point["runs"][0]) / "metrics.json" for point in result["points"][1:3])
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    again = campaign(settings, sweep=True, console=QUIET)
    assert kept.stat().st_mtime_ns == stamp
    assert [point["metrics"] for point in again["points"]] == [point["metrics"] for point in result["points"]]


def test_a_combination_that_diverges_is_left_out(folder: Path, tmp_path: Path) -> None:
    sections = {"sweep": {"learning_rate": [1e38, 1e-3], "epochs": [1]}}
    settings = recipe(folder, tmp_path / "sweep", sections=sections)
    console = Console(record=True, width=140)
    result = campaign(settings, sweep=True, console=console)
    assert (result["finished"], result["wanted"], result["best"]) == (1, 2, 0)
    assert result["points"][0]["settings"]["learning_rate"] == 1e-3
    assert "diverged: " in console.export_text()


def test_a_folder_with_something_else_in_it_is_kept(folder: Path, tmp_path: Path) -> None:
    settings = recipe(folder, tmp_path / "run", sections={"seeds": [1, 2]}, epochs=1)
    finetune(settings, QUIET)
    with pytest.raises(UserError, match="holds a single run"):
        campaign(settings, sweep=False, console=QUIET)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no fine-tuning run"):
        campaign(settings.model_copy(update={"output": tmp_path / "foreign"}), False, QUIET)
