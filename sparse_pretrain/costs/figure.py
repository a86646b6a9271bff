"""A picture of predicted scaling: throughput, and what a step's time is made of."""

import os
from pathlib import Path
from typing import Any

from sparse_pretrain.costs.scaling import Point
from sparse_pretrain.costs.time import by_term
from sparse_pretrain.files import atomic_path

# Terms that are shown by themselves; the rest is one.
SHOWN = 7


def draw(points: list[Point], path: Path, title: str) -> None:
    """Write a PNG: tokens a second over ranks beside the ideal, and the terms of a step as stacked shares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    there = [(point, point.best) for point in points if point.best is not None]
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    ranks = [point.ranks for point, _ in there]
    speed = [best.tokens_per_s for _, best in there]
    left.loglog(ranks, speed, "o-", label="predicted")
    left.loglog(ranks, [speed[0] / ranks[0] * count for count in ranks], "--", color="grey", label="ideal")
    label_ranks(left, ranks)
    before = ""
    for point, best in there:
        if point.limit != before:
            left.annotate(
                point.limit,
                (point.ranks, best.tokens_per_s),
                (6, -14),
                textcoords="offset points",
                fontsize=8,
            )
        before = point.limit
    left.set(
        xlabel="GPUs",
        ylabel="tokens/s",
        xlim=(ranks[0] / 1.5, ranks[-1] * 12),
        ylim=(speed[0] / 2, speed[0] * ranks[-1]),
    )
    left.legend()
    shares(right, there)
    with atomic_path(path) as temporary:
        figure.savefig(os.fspath(temporary), format="png", dpi=120)


def shares(axes: Any, there: list[tuple[Point, Any]]) -> None:
    """Draw every step's terms as shares of its time."""
    sums: dict[str, float] = {}
    for _, best in there:
        for name, value in best.time.terms.items():
            sums[name] = sums.get(name, 0.0) + value / best.time.seconds
    names = [name for name, _ in by_term(sums)]
    shown, rest = names[:SHOWN], names[SHOWN:]
    ranks = [point.ranks for point, _ in there]
    heights = [[best.time.terms.get(name, 0.0) / best.time.seconds for _, best in there] for name in shown]
    heights.append(
        [sum(best.time.terms.get(name, 0.0) for name in rest) / best.time.seconds for _, best in there]
    )
    axes.stackplot(ranks, heights, labels=[*shown, "other"], alpha=0.85)
    axes.set_xscale("log")
    label_ranks(axes, ranks)
    axes.set(
        xlabel="GPUs", ylabel="share of a step", ylim=(0, 1), xlim=(ranks[0], max(ranks[-1], ranks[0] + 1))
    )
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def label_ranks(axes: Any, ranks: list[int]) -> None:
    """Write the numbers of ranks themselves under a logarithmic axis."""
    axes.set_xticks(ranks, [f"{count:,}" for count in ranks], fontsize=7)
    axes.minorticks_off()
