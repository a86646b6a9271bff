"""Pictures of what mask updates report: sparsity, flips, thresholds and dead rows of the weights."""

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np
from matplotlib.figure import FigureBase
from matplotlib.ticker import EngFormatter, PercentFormatter

from sparse_pretrain.telemetry.drawing import BLACK, BLUE, KIND_COLOURS, RED, SKY, count_steps
from sparse_pretrain.telemetry.metrics import Row, finite, of_kind, series
from sparse_pretrain.telemetry.weight_names import place


def draw_layers(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the sparsity of every pruned weight after the last mask update, grouped by layer."""
    axes = figure.subplots()
    last = of_kind(rows, "masks")[-1]
    sparsity = {place(name): float(layer["sparsity"]) for name, layer in last["layers"].items()}
    groups = list(dict.fromkeys(group for group, _ in sparsity))
    kinds = list(dict.fromkeys(kind for _, kind in sparsity))
    width = 0.84 / len(kinds)
    for index, kind in enumerate(kinds):
        colour = KIND_COLOURS[index % len(KIND_COLOURS)]
        inside = [group for group in groups if (group, kind) in sparsity]
        # Weights outside the layers stand alone: their bar goes to the middle of the group.
        offsets = [
            0.0 if sum(key[0] == group for key in sparsity) == 1 else (index + 0.5) * width - 0.42
            for group in inside
        ]
        positions = [groups.index(group) + offset for group, offset in zip(inside, offsets, strict=True)]
        heights = [sparsity[group, kind] for group in inside]
        axes.bar(positions, heights, width=width * 0.92, color=colour, label=kind)
    overall = float(last["sparsity"])
    axes.axhline(overall, color=BLACK, linestyle="--", linewidth=1, label=f"overall {overall:.1%}")
    axes.set(
        title=f"Sparsity per layer at step {last['step']:,}", xlabel="layer", ylabel="weights that are zero"
    )
    axes.set(ylim=(0, 1), xlim=(-0.6, len(groups) - 0.4))
    # Numbers of many layers would run into each other: every second or third is enough.
    every = 1 + len(groups) // 16
    shown = [group if index % every == 0 or not group.isdigit() else "" for index, group in enumerate(groups)]
    axes.set_xticks(range(len(groups)), shown)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside lower center", ncols=4)


def draw_flips(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw how many weights each mask update pruned and let grow back, on a logarithmic scale.

    Logarithmic, because the first updates of a cubic ramp prune a thousand times more than the refreshing
    ones at its end, whose balance of pruned and regrown weights is what one wants to see.
    """
    axes = figure.subplots()
    masks = of_kind(rows, "masks")
    steps, pruned = series(masks, "pruned")
    _, regrown = series(masks, "regrown")
    # A file of an older version may have an update twice.
    gaps = np.diff(np.unique(steps))
    width = 0.42 * float(gaps.min() if len(gaps) else 1)
    left = np.asarray(steps, dtype=float)
    axes.bar(left - width / 2, pruned, width=width, color=RED, label="pruned")
    axes.bar(left + width / 2, regrown, width=width, color=SKY, label="grown back")
    axes.set(title="Mask flips per update", xlabel="step", ylabel="weights")
    flips = [count for count in (*pruned, *regrown) if count > 0]
    if flips:
        axes.set_yscale("log")
        axes.set_ylim(bottom=10 ** np.floor(np.log10(min(flips))))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    count_steps(axes)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper right")


def has_layer_numbers(rows: Sequence[Row], key: str) -> bool:
    """Say whether any mask update has this number of any weight."""
    return any(numbers_by_kind(row, key) for row in of_kind(rows, "masks"))


def numbers_by_kind(row: Row, key: str) -> dict[str, list[float]]:
    """Return one mask update's finite numbers of all weights, by what the weights do in their layer."""
    kinds: dict[str, list[float]] = {}
    for name, layer in row.get("layers", {}).items():
        value = finite(layer.get(key))
        if value is not None:
            kinds.setdefault(place(name)[1], []).append(value)
    return kinds


def draw_thresholds(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the score below which weights were pruned: one line where all share it, else one a kind of weight.

    A kind's line is the median over its layers, the band behind it goes from the lowest to the highest.
    """
    axes = figure.subplots()
    updates = [(row["step"], numbers_by_kind(row, "threshold")) for row in of_kind(rows, "masks")]
    if all(len({value for values in kinds.values() for value in values}) <= 1 for _, kinds in updates):
        shared = [(step, next(iter(kinds.values()))[0]) for step, kinds in updates if kinds]
        axes.plot(*zip(*shared, strict=True), color=BLUE, marker="o", markersize=3, label="all weights")
    else:
        for kind, colour in kind_colours(updates).items():
            points = [(step, kinds[kind]) for step, kinds in updates if kind in kinds]
            steps = [step for step, _ in points]
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, [median(values) for _, values in points], color=colour, label=kind)
    axes.set(title="Pruning threshold", xlabel="step", ylabel="highest pruned score")
    count_steps(axes)
    figure.legend(loc="outside lower center", ncols=4)


def draw_dead_rows(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the share of rows without a kept weight: the mean of every kind of weight, and the worst weight."""
    axes = figure.subplots()
    updates = [(row["step"], numbers_by_kind(row, "dead_rows")) for row in of_kind(rows, "masks")]
    for kind, colour in kind_colours(updates).items():
        points = [(step, fmean(kinds[kind])) for step, kinds in updates if kind in kinds]
        axes.plot(*zip(*points, strict=True), color=colour, label=kind)
    worst = [(step, max(max(values) for values in kinds.values())) for step, kinds in updates if kinds]
    axes.plot(*zip(*worst, strict=True), color=BLACK, linestyle="--", linewidth=1, label="worst weight")
    axes.set(title="Dead rows", xlabel="step", ylabel="rows without a kept weight")
    axes.set_ylim(0, max(1.1 * max(value for _, value in worst), 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    count_steps(axes)
    figure.legend(loc="outside lower center", ncols=4)


def kind_colours(updates: Sequence[tuple[int, dict[str, list[float]]]]) -> dict[str, str]:
    """Return a colour for every kind of weight, in the order of the weights, the same in all pictures."""
    kinds = dict.fromkeys(kind for _, numbers in updates for kind in numbers)
    return {kind: KIND_COLOURS[index % len(KIND_COLOURS)] for index, kind in enumerate(kinds)}
