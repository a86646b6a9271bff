"""The report's picture: bytes by format on the left, milliseconds by engine on the right."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_pretrain.telemetry.drawing import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, STYLE, save

Facts = dict[str, Any]
# Other colours than dense and sparse have on the right: models stand in the order they were given.
SIZE_COLOURS = (GREEN, PINK, SKY, BLACK)


def draw(facts: Facts, path: Path) -> Path:
    """Write the picture as PNG; return the path."""
    cells = list(dict.fromkeys((row["batch"], row["length"]) for row in facts["times"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.0 + 3.2 * len(cells), 4.2), layout="constrained")
        axes = figure.subplots(1, 1 + len(cells), width_ratios=[1.6, *[1.0] * len(cells)])
        draw_sizes(axes[0], facts["models"])
        first = facts["times"][0]["model"]
        for place, cell in zip(axes[1:], cells, strict=True):
            rows = [
                row
                for row in facts["times"]
                if (row["batch"], row["length"]) == cell and row["model"] == first
            ]
            draw_times(place, rows, cell)
        return save(figure, path)


def draw_sizes(axes: Axes, models: list[Facts]) -> None:
    """Draw a bar for every format and model."""
    names = sorted(models[0]["bytes"], key=lambda name: -models[0]["bytes"][name])
    places, width = np.arange(len(names)), 0.8 / len(models)
    for number, model in enumerate(models):
        values = [model["bytes"][name] / 1e6 for name in names]
        bars = axes.barh(
            places + number * width,
            values,
            width,
            label=f"{model['label']} ({model['sparsity']:.0%} zeros)",
            color=SIZE_COLOURS[number % len(SIZE_COLOURS)],
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.set_yticks(places + 0.4 - width / 2, names)
    axes.invert_yaxis()
    axes.set(title="On disk", xlabel="MB")
    axes.legend(loc="lower right")


def draw_times(axes: Axes, rows: list[Facts], cell: tuple[int, int]) -> None:
    """Draw dense and sparse medians of every engine at one batch and length."""
    places = np.arange(len(rows))
    for number, (role, colour) in enumerate((("dense", BLUE), ("sparse", ORANGE))):
        values = [row[role]["median_ms"] for row in rows]
        bars = axes.bar(places + 0.4 * number, values, 0.4, label=role, color=colour)
        axes.bar_label(bars, [show_time(value) for value in values], fontsize=6, rotation=90, padding=2)
    axes.set_xticks(places + 0.2, [row["engine"] for row in rows], rotation=40, ha="right")
    axes.set(title=f"batch {cell[0]}, length {cell[1]}", ylabel="ms a call, median")
    # Room for the upright numbers and the legend.
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(loc="upper left", ncols=2)


def show_time(milliseconds: float) -> str:
    """Return milliseconds in three digits or more: `0.29`, `28.7`, `3,716`."""
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
