"""The table and the picture of `sparse-pretrain gap`: points of the task's metric that a sparse model lacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from sparse_pretrain.files import write_text
from sparse_pretrain.telemetry.drawing import KIND_COLOURS, STYLE, save

Row = dict[str, Any]


def write_report(output: Path, rows: Sequence[Row], console: Console) -> None:
    """Write `gap.md` and `gap.png`, and print the table."""
    text = table(rows) + "\n"
    write_text(output / "gap.md", text)
    draw(output / "gap.png", rows)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{output / 'gap.md'}, {output / 'gap.png'}", soft_wrap=True)


def dense_of(rows: Sequence[Row], task: str) -> Row:
    """Return the dense model's row of a task."""
    (row,) = [row for row in rows if row["task"] == task and row["pruning_steps"] == 0]
    return row


def gap(rows: Sequence[Row], row: Row) -> float:
    """Return by how many points (hundredths of the metric) a row's mean is below its task's dense one."""
    return 100 * float(dense_of(rows, row["task"])["mean"] - row["mean"])


def table(rows: Sequence[Row]) -> str:
    """Return the markdown table: a line for every task, number of pruning tokens, and way of fine-tuning."""
    seeds = len(rows[0]["values"])
    lines = [
        f"Mean and sample deviation of {seeds} seed{'s' if seeds > 1 else ''}, in points; the gap is to the dense "
        "model fine-tuned by the same recipe",
        "",
        "| task | model | pruning tokens | fine-tuning | score | gap |",
        "|---|---|---:|---|---:|---:|",
    ]
    for row in rows:
        dense = row["pruning_steps"] == 0
        cells = [
            row["title"],
            "dense" if dense else f"sparse {row['sparsity']:.0%}",
            "–" if dense else f"{row['pruning_tokens']:,}",
            "KD" if row["distilled"] else "plain",
            score(row),
            "–" if dense else f"{gap(rows, row):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def score(row: Row) -> str:
    """Return `mean ± deviation` in points, and which metric."""
    deviation = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.1f}"
    return f"{100 * row['mean']:.1f}{deviation} {row['metric']}"


def draw(path: Path, rows: Sequence[Row]) -> Path:
    """Draw the gap over pruning tokens, a colour a task, solid with distillation and dashed without."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        titles = {row["task"]: row["title"] for row in rows}
        for (task, title), colour in zip(titles.items(), KIND_COLOURS, strict=False):
            for distilled in (True, False):
                line = [
                    row
                    for row in rows
                    if row["task"] == task and row["pruning_steps"] and row["distilled"] == distilled
                ]
                axes.errorbar(
                    [row["pruning_tokens"] / 1e6 for row in line],
                    [gap(rows, row) for row in line],
                    yerr=[100 * (row["deviation"] or 0.0) for row in line],
                    fmt="-o" if distilled else "--o",
                    color=colour,
                    markersize=4,
                    capsize=2,
                    label=f"{title}, {'KD' if distilled else 'plain'}",
                )
        axes.axhline(0, color="#777777", linewidth=0.8)
        axes.set(
            title="What 85 % sparsity costs on labelled tasks",
            xlabel="tokens of pruning [millions]",
            ylabel="points below the dense model",
        )
        axes.set_xscale("log")
        axes.legend()
        return save(figure, path)
