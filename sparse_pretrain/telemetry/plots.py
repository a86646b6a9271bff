"""Pictures of a run, drawn from its `metrics.jsonl`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase

from sparse_pretrain.telemetry.drawing import STYLE, save
from sparse_pretrain.telemetry.mask_pictures import (
    draw_dead_rows,
    draw_flips,
    draw_layers,
    draw_thresholds,
    has_layer_numbers,
)
from sparse_pretrain.telemetry.metrics import Row, of_kind, read_rows, series
from sparse_pretrain.telemetry.step_pictures import (
    distillation_parts,
    draw_distillation,
    draw_gradient,
    draw_losses,
    draw_schedule,
)

Draw = Callable[[FigureBase, Sequence[Row]], None]
# Panels of the overview, by row; a name after another stands in where a run has no data for the first.
OVERVIEW = (
    (("losses",), ("schedule",), ("distillation", "gradient")),
    (("layers",), ("mask_flips",), ("thresholds", "dead_rows")),
)


@dataclass(frozen=True)
class Picture:
    """One file: what draws it, its size in inches, and whether rows have the data."""

    draw: Draw
    size: tuple[float, float]
    has_data: Callable[[Sequence[Row]], bool]


def has_steps(rows: Sequence[Row]) -> bool:
    """Say whether any training step was recorded."""
    return bool(of_kind(rows, "train"))


def has_updates(rows: Sequence[Row]) -> bool:
    """Say whether any mask update was recorded."""
    return bool(of_kind(rows, "masks"))


def has_distillation(rows: Sequence[Row]) -> bool:
    """Say whether anything beyond the total distillation loss was recorded."""
    return bool(distillation_parts(rows) or series(of_kind(rows, "train"), "teacher_agreement")[1])


def has_gradient(rows: Sequence[Row]) -> bool:
    """Say whether gradient norms were recorded."""
    return bool(series(of_kind(rows, "train"), "gradient_norm")[1])


PICTURES = {
    "losses": Picture(draw_losses, (7, 4), has_steps),
    "schedule": Picture(draw_schedule, (7, 4.5), has_steps),
    "distillation": Picture(draw_distillation, (7, 4.5), has_distillation),
    "gradient": Picture(draw_gradient, (7, 4), has_gradient),
    "layers": Picture(draw_layers, (9, 4), partial(has_layer_numbers, key="sparsity")),
    "mask_flips": Picture(draw_flips, (7, 4), has_updates),
    "thresholds": Picture(draw_thresholds, (7, 4), partial(has_layer_numbers, key="threshold")),
    "dead_rows": Picture(draw_dead_rows, (7, 4), partial(has_layer_numbers, key="dead_rows")),
}


def plot_run(run_folder: Path) -> list[Path]:
    """Draw every picture that the run's metrics have data for into `run_folder/plots/`.

    Args:
        run_folder: folder with `metrics.jsonl`, of a finished, running or killed run, of this version or
            an older one that recorded less.

    Returns:
        The files written, named as in `PICTURES`, and for a run that prunes `overview.png` with four or six
        of them. Empty when there are no metrics yet.
    """
    rows = read_rows(run_folder / "metrics.jsonl")
    drawn = {name: picture for name, picture in PICTURES.items() if picture.has_data(rows)}
    folder = run_folder / "plots"
    written = [draw_file(picture, rows, folder / f"{name}.png") for name, picture in drawn.items()]
    grid = overview_panels(drawn)
    if grid:
        size = (18.0 if len(grid[0]) == 3 else 14.0, 8.5)
        overview = Picture(partial(draw_overview, grid=grid), size, has_updates)
        written.append(draw_file(overview, rows, folder / "overview.png"))
    return written


def draw_file(picture: Picture, rows: Sequence[Row], path: Path) -> Path:
    """Draw one picture into a file; return the path."""
    with rc_context(STYLE):
        figure = Figure(figsize=picture.size, layout="constrained")
        FigureCanvasAgg(figure)
        picture.draw(figure, rows)
        return save(figure, path)


def overview_panels(drawn: dict[str, Picture]) -> list[list[Draw]]:
    """Return the overview's two rows of three panels, of two where a third is missing; none without all four."""
    rows = [[next((name for name in names if name in drawn), None) for names in row] for row in OVERVIEW]
    columns = min(row.index(None) if None in row else len(row) for row in rows)
    if columns < 2:
        return []
    return [[drawn[name].draw for name in row[:columns] if name is not None] for row in rows]


def draw_overview(figure: FigureBase, rows: Sequence[Row], grid: Sequence[Sequence[Draw]]) -> None:
    """Draw several pictures as one."""
    panels = np.asarray(figure.subfigures(len(grid), len(grid[0]), wspace=0.03, hspace=0.05), dtype=object)
    for panel, draw in zip(panels.flat, [draw for row in grid for draw in row], strict=True):
        draw(panel, rows)
