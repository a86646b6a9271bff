"""Pictures of a run, drawn from its `metrics.jsonl`: losses, schedules, sparsity per layer, mask flips."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter
from matplotlib.typing import RcKeyType

from sparse_pretrain.files import atomic_path
from sparse_pretrain.telemetry.metrics import Row, of_kind, read_rows, series
from sparse_pretrain.telemetry.weight_names import place

# Okabe & Ito's colours, which people with any colour vision tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
KIND_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, BLACK)
STYLE: dict[RcKeyType, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
DOTS_PER_INCH = 150
# Single steps are noisy: beyond this many points a line shows a running mean over the noise.
SMOOTH_ABOVE = 60

Draw = Callable[[FigureBase, Sequence[Row]], None]


def plot_run(run_folder: Path) -> list[Path]:
    """Draw every picture that the run's metrics have data for into `run_folder/plots/`.

    Args:
        run_folder: folder with `metrics.jsonl`, of a finished, running or killed run.

    Returns:
        The files written: `losses.png`, `schedule.png` (learning rate, and sparsity when pruning),
        and for a run that prunes `layers.png`, `mask_flips.png` and `overview.png` (all four). Empty when
        there are no metrics yet.
    """
    rows = read_rows(run_folder / "metrics.jsonl")
    pictures: dict[str, tuple[Draw, tuple[float, float]]] = {}
    if of_kind(rows, "train"):
        pictures |= {"losses": (draw_losses, (7, 4)), "schedule": (draw_schedule, (7, 4.5))}
    if of_kind(rows, "masks"):
        pictures |= {"layers": (draw_layers, (9, 4)), "mask_flips": (draw_flips, (7, 4))}
    if len(pictures) == 4:
        pictures["overview"] = (draw_overview, (14, 8.5))
    written = []
    for name, (draw, size) in pictures.items():
        with rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, rows)
            written.append(save(figure, run_folder / "plots" / f"{name}.png"))
    return written


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, atomically; return the path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path


def draw_overview(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the four pictures as one."""
    panels = np.asarray(figure.subfigures(2, 2, wspace=0.03, hspace=0.05), dtype=object)
    for panel, draw in zip(panels.flat, (draw_losses, draw_schedule, draw_layers, draw_flips), strict=True):
        draw(panel, rows)


def draw_losses(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the training losses over steps, and the held-out MLM loss as points."""
    axes = figure.subplots()
    train = of_kind(rows, "train")
    parts = [
        ("mlm_loss", "masked words (MLM)", BLUE),
        ("kd_loss", "distillation (KD)", ORANGE),
        ("nsp_loss", "next sentence (NSP)", GREEN),
    ]
    drawn = [part for part in parts if series(train, part[0])[1]]
    # The total of a single part is that part.
    total = [("loss", "total", BLACK)] if len(drawn) != 1 else []
    for key, label, colour in [*total, *drawn]:
        draw_noisy(axes, *series(train, key), label, colour)
    steps, held_out = series(of_kind(rows, "evaluation"), "validation_mlm_loss")
    if held_out:
        axes.plot(steps, held_out, "o", color=RED, markersize=5, label="held-out MLM", zorder=3)
        axes.annotate(
            f"{held_out[-1]:.2f}",
            (steps[-1], held_out[-1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            color=RED,
            fontsize=8,
        )
    axes.set(title="Losses", xlabel="step", ylabel="loss [nats]")
    axes.set_ylim(bottom=0)
    count_steps(axes)
    figure.legend(loc="outside lower center", ncols=5)


def draw_noisy(axes: Axes, steps: Sequence[int], values: Sequence[float], label: str, colour: str) -> None:
    """Draw a line; a long one as its running mean over the faint single values."""
    if len(values) <= SMOOTH_ABOVE:
        axes.plot(steps, values, color=colour, label=label)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(steps, running_mean(values, len(values) // (SMOOTH_ABOVE // 2)), color=colour, label=label)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last `window` values at each position, of fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return [float(mean) for mean in (sums[ends] - sums[starts]) / (ends - starts)]


def draw_schedule(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the learning rate over steps and, above it when the run prunes, target and actual sparsity."""
    train, masks = of_kind(rows, "train"), of_kind(rows, "masks")
    if masks:
        upper, lower = figure.subplots(2, 1, sharex=True)
        steps, actual = series(train, "sparsity")
        upper.plot(steps, actual, color=BLUE, label="actual", drawstyle="steps-post")
        steps, target = series(masks, "target_sparsity")
        upper.plot(steps, target, "o", color=ORANGE, markersize=3, label="target at mask updates")
        upper.set(title="Sparsity and learning rate", ylabel="weights that are zero", ylim=(0, 1))
        upper.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        upper.legend(loc="lower right")
    else:
        lower = figure.subplots()
        lower.set_title("Learning rate")
    steps, rates = series(train, "learning_rate")
    lower.plot(steps, rates, color=GREEN, linewidth=1.2)
    lower.set(xlabel="step", ylabel="learning rate")
    lower.set_ylim(bottom=0)
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    count_steps(lower)


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
    gaps = np.diff(steps)
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


def count_steps(axes: Axes) -> None:
    """Write whole steps at the horizontal axis, with separated thousands."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
