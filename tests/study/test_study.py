"""The accuracy study: what is compared, that recipes are valid, and that the verdicts follow the numbers."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError
from sparse_pretrain.study.grid import DENSE, PATTERNS, SPARSITIES, Cell, cells, recipe_of
from sparse_pretrain.study.report import table, verdicts, write_report
from sparse_pretrain.study.run import check_settings, run_cells
from tests.tiny import tiny_prepared, tiny_recipe

PATHS = {"data": "data", "teacher": "teacher", "output": "out"}


def test_the_grid_has_every_combination_once() -> None:
    grid = list(cells(seeds=2))
    assert len({cell.name for cell in grid}) == len(grid) == 68
    once = [cell for cell in grid if cell.seed == 0 and cell.distilled]
    assert len(once) == 1 + 3 * len(SPARSITIES) + 1 + 3
    assert Cell("2:4", 0.5, False, 1) in grid
    assert Cell("2:4", 0.9, False, 1) not in grid


@pytest.mark.parametrize("steps", [25, 60, 100, 1000])
def test_every_cell_is_a_valid_recipe_that_reaches_its_sparsity(steps: int) -> None:
    for cell in cells(seeds=1):
        recipe = TrainRecipe.model_validate(recipe_of(cell, steps, PATHS))
        assert (recipe.pruning is None) == (cell.pattern == DENSE)
        assert (recipe.distillation is not None) == cell.distilled
        if recipe.pruning is not None:
            assert recipe.pruning.target_sparsity == cell.sparsity
            assert recipe.pruning.last_update <= 0.64 * steps


def losses(kd_gain: float, gradual_gain: float) -> dict[Cell, float]:
    """Made-up losses with known differences."""
    return {
        cell: 5.0
        + cell.sparsity
        - (kd_gain if cell.distilled else 0)
        + (gradual_gain if "one shot" in cell.pattern else 0)
        + 0.01 * cell.seed
        for cell in cells(seeds=2)
    }


def test_the_table_has_a_row_a_pattern_and_loss() -> None:
    text = table(losses(0.1, 0.2), steps=60)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "pattern" not in line]
    assert len(rows) == 2 * (1 + len(PATTERNS))
    assert "| 2:4 | MLM | – | 5.505 ± 0.005 | – | – | – |" in rows


@pytest.mark.parametrize(("gain", "says"), [(0.1, "earns its keep"), (-0.1, "does not earn its keep")])
def test_the_verdicts_say_what_the_numbers_say(gain: float, says: str) -> None:
    teacher, *gradual = verdicts(losses(gain, gain))
    assert f"Distillation {says}" in teacher
    assert all(f"Gradual pruning {says}" in line for line in gradual)


def test_the_report_is_written(tmp_path: Path) -> None:
    write_report(tmp_path, losses(0.1, 0.2), 60, Console(quiet=True))
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "Distillation earns" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_runs_of_different_lengths_are_not_mixed(tmp_path: Path) -> None:
    check_settings(tmp_path, 60)
    check_settings(tmp_path, 60)
    with pytest.raises(UserError, match="holds a study of 60 steps"):
        check_settings(tmp_path, 100)


@pytest.mark.slow
def test_cells_run_resume_and_leave_no_checkpoints(tmp_path: Path) -> None:
    """Two real runs from a real release; the second call has nothing to do."""
    from sparse_pretrain.models.loading import build_model
    from sparse_pretrain.training.inputs import open_inputs

    tiny_prepared(tmp_path / "data")
    recipe = tiny_recipe(tmp_path / "data", tmp_path / "run")
    teacher = build_model(open_inputs(recipe).config, recipe.model, next_sentence=False)
    teacher.save_pretrained(tmp_path / "teacher" / "release")
    grid = [Cell("2:4", 0.5, True, 0), Cell(DENSE, 0.0, False, 0)]
    run_cells(tmp_path, grid, 25, 2, Console(quiet=True))
    for cell in grid:
        folder = tmp_path / "cells" / cell.name
        assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["step"] == 25
        assert not (folder / "checkpoints").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    run_cells(tmp_path, grid, 25, 2, Console(quiet=True))
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
