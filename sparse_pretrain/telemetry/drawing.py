"""What the pictures share: colours, style, axes, and how a file is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.typing import RcKeyType

from sparse_pretrain.files import atomic_path

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


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, atomically; return the path."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path


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


def count_steps(axes: Axes) -> None:
    """Write whole steps at the horizontal axis, with separated thousands."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
