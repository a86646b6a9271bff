"""The demo's own picture: dense and sparse scores side by side."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sparse_pretrain.telemetry.drawing import BLUE, ORANGE, save


def plot_scores(report: dict[str, Any], path: Path) -> Path:
    """Draw one pair of bars a task and one for masked-token accuracy; return the path."""
    pretraining = report["pretraining"]
    groups = [
        (
            "masked-token\naccuracy",
            *(pretraining[kind]["validation_mlm_accuracy"] for kind in ("dense", "sparse")),
        )
    ]
    groups += [
        (f"{name}\n{task['metric']}", task["dense"], task["sparse"]) for name, task in report["tasks"].items()
    ]
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    sparsity = report["sparsity"]["overall"]
    for offset, index, label, colour in (
        (-0.2, 1, "dense", BLUE),
        (0.2, 2, f"sparse, {sparsity:.0%} zeros", ORANGE),
    ):
        places = [number + offset for number in range(len(groups))]
        bars = axes.bar(places, [group[index] for group in groups], width=0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.3f", padding=2)
    axes.set(title="Dense and sparse after the same training", ylabel="held-out score", ylim=(0, 1.08))
    axes.set_xticks(range(len(groups)), [group[0] for group in groups])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left")
    return save(figure, path)
