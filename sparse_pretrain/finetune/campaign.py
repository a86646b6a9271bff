"""Several runs of one recipe: seeds, and a sweep over learning rates and epochs; one table and one file out.

A run that is finished is kept, so the same command goes on where it was interrupted.
"""

import itertools
import statistics
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.config.load import load_recipe, to_yaml
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json, write_text
from sparse_pretrain.finetune.evaluate import RECIPE
from sparse_pretrain.finetune.ranks import join_ranks, voice
from sparse_pretrain.finetune.recipe import AUTO, FinetuneRecipe
from sparse_pretrain.finetune.side_by_side import LOG, side_by_side
from sparse_pretrain.finetune.tasks import VALIDATION
from sparse_pretrain.finetune.train import METRICS, SUMMARY, finetune, holds_something, prepare, train_teacher

# Where `teacher: auto` stood, a run's own recipe names the teacher that came of it.
TEACHER_KEYS = ("teacher", "dense", "teachers")
# Of each run that ends: what it diverged by, or None.
Ends = Generator[FloatingPointError | None, None, None]


@dataclass(frozen=True)
class Point:
    """One combination of settings, and its runs: a recipe for each seed."""

    settings: dict[str, float]
    runs: list[FinetuneRecipe]


def campaign(recipe: FinetuneRecipe, sweep: bool, console: Console, workers: int = 1) -> dict[str, Any]:
    """Run every seed (of every combination, with `sweep`), and return what `summary.json` holds (collective).

    With `teacher: auto`, all runs learn from one teacher, trained with the recipe's own `seed` and settings.

    A combination that diverges is left out of the sweep's table. With several `workers` as many runs at a time, each in
    a process of its own.

    Raises:
        UserError: the user's mistakes; a finished run in the folder is of another recipe.
        FloatingPointError: a run of several seeds, or every run of a sweep, ended in NaN or infinite weights.
    """
    world = join_ranks(recipe.training)
    console = voice(world, console)
    if workers > 1 and world.size > 1:
        raise UserError(f"--parallel {workers}: not on several ranks; each run gets a process of its own")
    points = points_of(recipe, sweep)
    runs = [run for point in points for run in point.runs]
    open_runs = world.on_first(lambda: runs_to_do(recipe, runs))
    teacher = None
    if open_runs and recipe.distillation is not None and recipe.distillation.teacher == AUTO:
        teacher = train_teacher(recipe, prepare(open_runs[0]).fingerprint, console)
    world.on_first(lambda: write_text(recipe.output / RECIPE, to_yaml(recipe)))
    to_do = [with_teacher(run, teacher) for run in open_runs]
    # Closed whatever happens: runs that are under way side by side end with it.
    with closing(one_by_one(to_do, console) if workers == 1 else many(to_do, workers, console)) as ends:
        for diverged in ends:
            if diverged is not None:
                if not sweep:
                    raise diverged
                # A learning rate that is too high for the task is a finding of the sweep, not its end.
                console.print(f"[red]diverged:[/red] {diverged}", soft_wrap=True)
            world.on_first(lambda: write_summary(recipe, points))
    result: dict[str, Any] = world.on_first(lambda: write_summary(recipe, points))
    if not result["points"]:
        raise FloatingPointError("every run diverged; lower sweep.learning_rate")
    render(result, console)
    return result


def one_by_one(runs: Sequence[FinetuneRecipe], console: Console) -> Ends:
    """Fine-tune one after the other; yield what each diverged by, or None."""
    for number, run in enumerate(runs, start=1):
        console.print(f"run {number} of {len(runs)}: {run.output}", soft_wrap=True)
        try:
            finetune(run, console)
        except FloatingPointError as error:
            yield error
        else:
            yield None


def many(runs: Sequence[FinetuneRecipe], workers: int, console: Console) -> Ends:
    """Fine-tune several at a time; yield, as they end, what each diverged by, or None."""
    if not runs:
        return
    prepare(runs[0])  # a mistake that all of them would find is found once, before anything is written
    workers = min(workers, len(runs))  # cores are shared out among as many
    console.print(f"{len(runs)} runs, {workers} at a time; what each prints is in its logs/{LOG}")
    with closing(side_by_side(runs, workers)) as ends:
        for number, (run, diverged) in enumerate(ends, start=1):
            console.print(f"{number} of {len(runs)} done: {run.output}", soft_wrap=True)
            yield diverged


def runs_to_do(recipe: FinetuneRecipe, runs: Sequence[FinetuneRecipe]) -> list[FinetuneRecipe]:
    """Return the runs that are not finished.

    Raises:
        UserError: the folder holds something else, or finished runs of another recipe.
    """
    check_folder(recipe)
    return [run for run in runs if recipe.overwrite or not is_finished(run)]


def check_folder(recipe: FinetuneRecipe) -> None:
    """Refuse a folder that holds something else than such runs."""
    output = recipe.output
    if output.is_file():
        raise UserError(f"output = {output}: is a file; give a folder")
    if (output / METRICS).is_file():
        raise UserError(f"output = {output}: holds a single run; give another folder")
    if holds_something(output) and not (output / RECIPE).is_file():
        raise UserError(f"output = {output}: exists and is no fine-tuning run; give another folder")


def points_of(recipe: FinetuneRecipe, sweep: bool) -> list[Point]:
    """Return every combination with its runs, each in a folder named by what is its own."""
    if not sweep:
        return [Point({}, [run_of(recipe, {}, seed) for seed in recipe.seeds or [recipe.seed]])]
    return [
        Point(settings, [run_of(recipe, settings, seed) for seed in recipe.seeds or [recipe.seed]])
        for learning_rate, epochs in itertools.product(recipe.sweep.learning_rate, recipe.sweep.epochs)
        for settings in [{"learning_rate": learning_rate, "epochs": epochs}]
    ]


def run_of(recipe: FinetuneRecipe, settings: dict[str, float], seed: int) -> FinetuneRecipe:
    """Return the recipe of one run."""
    words = [f"{name.replace('_', '-')}-{value:g}" for name, value in settings.items()]
    output = recipe.output / "_".join(words) / f"seed-{seed}"
    training = recipe.training.model_copy(update=settings)
    return recipe.model_copy(update={"output": output, "seed": seed, "seeds": [], "training": training})


def with_teacher(run: FinetuneRecipe, teacher: str | None) -> FinetuneRecipe:
    """Return a run whose `teacher: auto` is the teacher that all runs share."""
    if teacher is None or run.distillation is None:
        return run
    section = run.distillation.model_copy(update={"teacher": teacher, "dense": None, "teachers": None})
    return run.model_copy(update={"distillation": section})


def is_finished(run: FinetuneRecipe) -> bool:
    """Say whether a run is done.

    Raises:
        UserError: a run is done there, of another recipe.
    """
    if not (run.output / METRICS).is_file():
        return False
    before = load_recipe(run.output / RECIPE, [], FinetuneRecipe)
    old, new = (one.model_dump(mode="json", exclude={"overwrite"}) for one in (before, run))
    if run.distillation is not None and run.distillation.teacher == AUTO:
        for values in (old, new):
            section = values["distillation"] or {}
            values["distillation"] = {key: section[key] for key in section if key not in TEACHER_KEYS}
    for key in new:
        if old[key] != new[key]:
            raise UserError(
                f"{run.output}: holds a finished run of another recipe ({key} differs); give another output, or set "
                "overwrite=true"
            )
    return True


def summary(recipe: FinetuneRecipe, points: Sequence[Point]) -> dict[str, Any]:
    """Return settings, runs, and mean and deviation of every metric, of the points that are finished."""
    rows = [
        {
            "settings": point.settings,
            "seeds": [run.seed for run in point.runs],
            "runs": [str(run.output) for run in point.runs],
            **statistics_of([read_json(run.output / METRICS) for run in point.runs]),
        }
        for point in points
        if all((run.output / METRICS).is_file() for run in point.runs)
    ]
    metric = recipe.task.headline
    sign = -1 if metric == "rmse" else 1
    order = sorted(range(len(rows)), key=lambda row: -sign * headline(rows[row], metric)["mean"])
    return {
        "output": str(recipe.output),
        "model": recipe.model,
        "metric": metric,
        "finished": len(rows),
        "wanted": len(points),
        "best": order[0] if order else None,
        "points": rows,
    }


def write_summary(recipe: FinetuneRecipe, points: Sequence[Point]) -> dict[str, Any]:
    """Write `summary.json` of what is finished, and return what it holds."""
    result = summary(recipe, points)
    if result["points"]:
        write_json(recipe.output / SUMMARY, result)
    return result


def statistics_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean, sample deviation (None of one run) and values of every metric by split, and the zeros' proof."""
    first = results[0]["metrics"]
    metrics = {
        split: {
            name: spread([float(result["metrics"][split][name]) for result in results]) for name in values
        }
        for split, values in first.items()
    }
    return {
        "metrics": metrics,
        "sparsity": results[0]["sparsity"],
        "nonzero_outside_masks": max(result["nonzero_outside_masks"] for result in results),
        "train_seconds": round(sum(result["train_seconds"] for result in results), 3),
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (divisor n - 1) and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": list(values)}


def headline(row: dict[str, Any], metric: str) -> dict[str, Any]:
    """Return the headline metric of a point, on the validation data."""
    found: dict[str, Any] = row["metrics"][VALIDATION][metric]
    return found


def render(result: dict[str, Any], console: Console) -> None:
    """Print a row for each combination, best marked, with mean and deviation of every validation metric."""
    rows = result["points"]
    names = list(rows[0]["metrics"][VALIDATION])
    table = Table(
        title=f"{Path(result['output'])}: {len(rows[0]['seeds'])} run(s) a row, mean ± deviation",
        title_justify="left",
    )
    for name in rows[0]["settings"]:
        table.add_column(name.replace("_", " "), justify="right")
    for name in names:
        table.add_column(name, justify="right", style="bold" if name == result["metric"] else "")
    for number, row in enumerate(rows):
        cells = [f"{value:g}" for value in row["settings"].values()]
        cells += [show(row["metrics"][VALIDATION][name]) for name in names]
        is_best = len(rows) > 1 and number == result["best"]
        table.add_row(*cells, style="green" if is_best else "")
    console.print(table)
    if len(rows) > 1:
        console.print(
            "green: the best. It was chosen on the validation data, so its score there is flattered; measure the "
            "test split.",
            soft_wrap=True,
        )
    console.print(f"every number: {Path(result['output']) / SUMMARY}", soft_wrap=True)


def show(value: dict[str, Any]) -> str:
    """Return `mean ± deviation`."""
    deviation = value["deviation"]
    return f"{value['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
