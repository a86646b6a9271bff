"""A plan for people, and as JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.costs.job import Job
from sparse_pretrain.costs.predict import Prediction
from sparse_pretrain.costs.scaling import Point
from sparse_pretrain.costs.search import Found
from sparse_pretrain.costs.time import by_term

GIB = 2**30
SAID = ("step_seconds", "tokens_per_s", "mfu", "gpu_hours", "limit")


def numbers(job: Job, device: Device, asked: Prediction, found: Found, points: list[Point]) -> dict[str, Any]:
    """Return a plan, JSON-able: the recipe as it is, the best choice, the runner-up, the scaling."""
    return {
        "device": {"name": device.name, "source": device.source},
        "parameters": job.shape.parameters,
        "prunable_weights": job.shape.prunable,
        "precision": job.precision,
        "length": job.length,
        "recipe": asked.numbers(),
        "best": found.best.numbers(),
        "runner_up": None if found.runner_up is None else {**found.runner_up.numbers(), "why": found.why},
        "scaling": [point_numbers(point) for point in points],
    }


def point_numbers(point: Point) -> dict[str, Any]:
    """Return one line of the scaling table."""
    base = {"ranks": point.ranks, "limit": point.limit, "efficiency": point.efficiency}
    if point.best is None:
        return base
    best = point.best.numbers()
    # Ranks that have no row cost as much as the others.
    hours = best["gpu_hours"] * point.ranks / point.working
    return {
        **{key: best[key] for key in SAID if key != "limit"},
        **base,
        "gpu_hours": hours,
        "choice": best["choice"],
    }


def describe(one: Prediction) -> str:
    """Say what was chosen: stage, micro-batches x rows on each rank."""
    return f"ZeRO {one.choice.stage}, {one.accumulation} x {one.rows}"


def render(
    job: Job,
    device: Device,
    asked: Prediction,
    found: Found,
    points: list[Point],
    console: Console,
    layout: str,
) -> None:
    """Print a plan."""
    best, second = found.best, found.runner_up
    shown = [("recipe", asked), ("best", best)] + ([("runner-up", second)] if second else [])
    title = (
        f"{job.shape.parameters:,} parameters, {job.precision}, rows of {job.length}, {job.recipe.batch.global_size} a "
        f"step, on {layout}; {device.name}, {device.source}"
    )
    console.print(title, soft_wrap=True, highlight=False)
    table = Table("", *(name for name, _ in shown), title="prediction")
    add = table.add_row
    add("choice", *(describe(one) for _, one in shown))
    add("step", *(f"{one.time.seconds * 1e3:,.1f} ms" for _, one in shown))
    add("tokens/s", *(f"{one.tokens_per_s:,.0f}" for _, one in shown))
    add("MFU", *(f"{one.mfu:.1%}" for _, one in shown))
    add("run", *(f"{one.gpu_hours:,.1f} GPU-hours, {one.gpu_hours / one.ranks:,.1f} h" for _, one in shown))
    add("memory a rank", *(memory_line(one, device) for _, one in shown))
    add(
        "checkpoint",
        *(f"{one.checkpoint_bytes / GIB:.2f} GiB, {one.checkpoint_seconds:.1f} s" for _, one in shown),
    )
    add("limit", *(one.limit for _, one in shown))
    console.print(table)
    console.print(f"runner-up: {found.why}", highlight=False)
    console.print(parts_table(asked, best))
    if points:
        console.print(scaling_table(points))


def memory_line(one: Prediction, device: Device) -> str:
    """Say how much of the device's memory a choice takes."""
    verdict = "" if one.fits else ", does not fit"
    return f"{one.memory['total'] / GIB:.1f} of {device.memory / GIB:.1f} GiB{verdict}"


def parts_table(asked: Prediction, best: Prediction) -> Table:
    """Return where time and memory go, in the recipe's choice and in the best."""
    table = Table("", "recipe", "best", title="where a step's time and a rank's memory go")
    for name, _ in by_term({**asked.time.terms, **best.time.terms}):
        pair = (asked.time.terms.get(name, 0.0), best.time.terms.get(name, 0.0))
        table.add_row(name, *(f"{value * 1e3:,.2f} ms" for value in pair))
    table.add_row("hidden communication", *(f"{one.time.hidden * 1e3:,.2f} ms" for one in (asked, best)))
    for name in asked.memory:
        pair = (asked.memory[name], best.memory.get(name, 0.0))
        if any(pair):
            table.add_row(name.replace("_", " "), *(f"{value / GIB:,.2f} GiB" for value in pair))
    return table


def scaling_table(points: list[Point]) -> Table:
    """Return the scaling, a line for each number of ranks."""
    table = Table(
        "GPUs",
        "choice",
        "step",
        "tokens/s",
        "MFU",
        "efficiency",
        "GPU-hours",
        "limit",
        title="predicted scaling",
    )
    for point in points:
        if point.best is None:
            table.add_row(str(point.ranks), "nothing fits", "", "", "", "", "", point.limit)
            continue
        values = point_numbers(point)
        table.add_row(
            f"{point.ranks:,}",
            describe(point.best),
            f"{values['step_seconds'] * 1e3:,.1f} ms",
            f"{values['tokens_per_s']:,.0f}",
            f"{values['mfu'] * point.working / point.ranks:.1%}",
            f"{point.efficiency:.0%}",
            f"{values['gpu_hours']:,.0f}",
            point.limit,
        )
    return table
