"""Pictures of what every training step reports: losses, schedules, distillation, gradient norm."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.ticker import PercentFormatter

from sparse_pretrain.telemetry.drawing import (
    BLACK,
    BLUE,
    GREEN,
    KIND_COLOURS,
    ORANGE,
    PINK,
    RED,
    SKY,
    count_steps,
    draw_noisy,
)
from sparse_pretrain.telemetry.metrics import Row, of_kind, series

# Steps and values.
Series = tuple[list[int], list[float]]
# What a part of the distillation loss compares.
PARTS = {
    "kd_logits": "logits",
    "kd_hidden": "hidden states",
    "kd_attention": "attention maps",
    "kd_embeddings": "embeddings",
}
# Parts of such different sizes need a logarithmic axis.
WIDE = 30.0


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
    # Squared distances of inner values are no nats.
    unit = " [nats]" if set(distillation_parts(rows)) <= {"kd_logits"} else ""
    axes.set(title="Losses", xlabel="step", ylabel=f"loss{unit}")
    axes.set_ylim(bottom=0)
    count_steps(axes)
    figure.legend(loc="outside lower center", ncols=5)


def draw_schedule(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the learning rate over steps and, above it when the run prunes, target and actual sparsity."""
    train, masks = of_kind(rows, "train"), of_kind(rows, "masks")
    if masks:
        upper, lower = figure.subplots(2, 1, sharex=True)
        # Updates are told when they happen, ordinary steps only now and then: both make the staircase.
        steps, actual = series(sorted([*train, *masks], key=lambda row: row["step"]), "sparsity")
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


def distillation_parts(rows: Sequence[Row]) -> list[str]:
    """Return the keys of the distillation's parts that training rows have numbers for."""
    train = of_kind(rows, "train")
    keys = dict.fromkeys(key for row in train for key in row if key.startswith("kd_"))
    return [key for key in keys if key != "kd_loss" and series(train, key)[1]]


def draw_distillation(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the unweighted parts of the distillation loss and, below, how often student and teacher agree.

    The temperature is drawn when it changes, and named when it does not.
    """
    train = of_kind(rows, "train")
    parts = {key: series(train, key) for key in distillation_parts(rows)}
    agreement, temperature = series(train, "teacher_agreement"), series(train, "temperature")
    changes = len(set(temperature[1])) > 1
    panels: list[Callable[[Axes], None]] = []
    if parts:
        panels.append(partial(_draw_parts, parts=parts))
    if agreement[1]:
        panels.append(partial(_draw_agreement, agreement=agreement))
    if changes:
        panels.append(partial(_draw_temperature, temperature=temperature))
    stacked = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, draw in zip(stacked, panels, strict=True):
        draw(axes)
    named = f" at T = {temperature[1][-1]:g}" if temperature[1] and not changes else ""
    stacked[0].set_title(f"Distillation{named}")
    stacked[-1].set_xlabel("step")
    count_steps(stacked[-1])
    if parts:
        figure.legend(*stacked[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _draw_parts(axes: Axes, parts: Mapping[str, Series]) -> None:
    for (key, points), colour in zip(parts.items(), cycle(KIND_COLOURS), strict=False):
        draw_noisy(axes, *points, PARTS.get(key, key.removeprefix("kd_")), colour)
    positive = [value for _, values in parts.values() for value in values if value > 0]
    if positive and max(positive) > WIDE * min(positive):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("loss")


def _draw_agreement(axes: Axes, agreement: Series) -> None:
    draw_noisy(axes, *agreement, "", SKY)
    axes.set(ylabel="agreement", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_temperature(axes: Axes, temperature: Series) -> None:
    axes.plot(*temperature, color=PINK, drawstyle="steps-post")
    axes.set_ylabel("temperature")
    axes.set_ylim(bottom=0)


def draw_gradient(figure: FigureBase, rows: Sequence[Row]) -> None:
    """Draw the gradient norm before clipping, on a logarithmic scale, and mark every skipped update."""
    axes = figure.subplots()
    train = of_kind(rows, "train")
    draw_noisy(axes, *series(train, "gradient_norm"), "before clipping", BLUE)
    # Older files say `skipped: true` of the step itself; now `skipped` counts, and `applied` is of the step.
    skipped = [row["step"] for row in train if row.get("applied") is False or row.get("skipped") is True]
    if skipped:
        label = f"{len(skipped):,} skipped {'update' if len(skipped) == 1 else 'updates'}"
        heights = [0.03] * len(skipped)
        across = axes.get_xaxis_transform()
        axes.plot(skipped, heights, "|", color=RED, markersize=9, transform=across, label=label)
    if any(value > 0 for value in series(train, "gradient_norm")[1]):
        axes.set_yscale("log")
    axes.set(title="Gradient norm", xlabel="step", ylabel="global L2 norm")
    count_steps(axes)
    axes.legend(loc="upper right")
