"""The gap on labelled tasks: which runs there are, that their recipes are valid, and what table and picture say."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparse_pretrain.cli_options import whole_numbers
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.demo.settings import FULL
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.study.gap import Entry, entries, finetuning_of, pruning_of
from sparse_pretrain.study.gap_report import gap, table, write_report

OUTPUT = Path("/gap")


@pytest.mark.parametrize("steps", [50, 220, 880, 10_000])
def test_every_pruning_run_is_a_valid_recipe_in_the_papers_proportions(steps: int) -> None:
    recipe = load_recipe("demo-prune", pruning_of(OUTPUT, steps), TrainRecipe)
    assert recipe.pruning is not None
    assert recipe.pruning.target_sparsity == 0.85
    assert recipe.steps == steps
    if steps >= 100:
        assert recipe.pruning.ramp_end == pytest.approx(0.5 * steps, rel=0.15)
        assert recipe.pruning.last_update == pytest.approx(0.8 * steps, rel=0.15)


def test_every_entry_is_a_valid_recipe_of_its_own() -> None:
    found = list(entries(FULL.tasks, [220, 880]))
    recipes = [
        load_recipe(entry.task.recipe, finetuning_of(OUTPUT, entry, [1, 2, 3]), FinetuneRecipe)
        for entry in found
    ]
    assert len({recipe.output for recipe in recipes}) == len(found) == 2 * 5
    for entry, recipe in zip(found, recipes, strict=True):
        assert recipe.seeds == [1, 2, 3]
        assert (recipe.distillation is not None) == entry.distilled
        assert ("teacher" in recipe.model) == (entry.steps == 0)
    # All but the model and its teacher is the same.
    first, *others = (recipe.training for recipe in recipes[:5])
    assert all(other == first for other in others)


def row(steps: int, distilled: bool, mean: float) -> dict[str, Any]:
    """A made-up result of film reviews."""
    entry = Entry(FULL.tasks[0], steps, distilled)
    return {
        "task": entry.task.name,
        "title": entry.task.title,
        "pruning_steps": steps,
        "pruning_tokens": 2048 * steps,
        "distilled": distilled,
        "metric": "accuracy",
        "mean": mean,
        "deviation": 0.002,
        "values": [mean] * 3,
        "sparsity": 0.85 if steps else 0.0,
    }


ROWS = [row(0, False, 0.8), row(220, True, 0.75), row(220, False, 0.73), row(880, True, 0.789)]


def test_the_table_says_how_many_points_are_missing() -> None:
    text = table(ROWS)
    assert "| dense | – | plain | 80.0 ± 0.2 accuracy | – |" in text
    assert "| sparse 85% | 450,560 | KD | 75.0 ± 0.2 accuracy | 5.0 |" in text
    assert "| sparse 85% | 1,802,240 | KD | 78.9 ± 0.2 accuracy | 1.1 |" in text
    assert gap(ROWS, ROWS[2]) == pytest.approx(7.0)


def test_the_report_is_written(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS, Console(quiet=True))
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert (
        (tmp_path / "gap.md").read_text(encoding="utf-8").startswith("Mean and sample deviation of 3 seeds")
    )


def test_numbers_on_the_command_line() -> None:
    assert whole_numbers("880, 220,220", "--steps") == [220, 880]
    for wrong in ("", "1,,2", "many", "-3", "49"):
        with pytest.raises(UserError, match=r"--steps = .*: give whole numbers from 50"):
            whole_numbers(wrong, "--steps", 50)
