"""The study's table, picture, and what they say about distillation and gradual pruning."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from sparse_pretrain.files import write_text
from sparse_pretrain.study.grid import DENSE, PATTERNS, SPARSITIES, Cell, mean
from sparse_pretrain.telemetry.drawing import KIND_COLOURS, STYLE, save

Losses = Mapping[Cell, float]


def write_report(output: Path, losses: Losses, steps: int, console: Console) -> None:
    """Write `table.md` and `study.png` into the study's folder, and print the table."""
    text = table(losses, steps) + "\n\n" + "\n".join(f"- {line}" for line in verdicts(losses)) + "\n"
    write_text(output / "table.md", text)
    draw(output / "study.png", losses)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{output / 'table.md'}, {output / 'study.png'}", soft_wrap=True)


def values_of(losses: Losses, pattern: str, sparsity: float, distilled: bool) -> list[float]:
    """Return the held-out losses of all seeds of one entry of the table."""
    return [
        loss
        for cell, loss in losses.items()
        if (cell.pattern, cell.sparsity, cell.distilled) == (pattern, sparsity, distilled)
    ]


def table(losses: Losses, steps: int) -> str:
    """Return the markdown table: mean over seeds, and half their range."""
    seeds = len({cell.seed for cell in losses})
    head = [
        f"Held-out masked-language loss (nats) after {steps} steps of 8 x 128 tokens, mean of {seeds} seeds "
        "(± half their range)",
        "",
        "| pattern | loss | " + " | ".join(f"{sparsity:.0%}" for sparsity in (0.0, *SPARSITIES)) + " |",
        "|---|---|" + "---:|" * (1 + len(SPARSITIES)),
    ]
    rows = []
    for pattern in (DENSE, *PATTERNS):
        for distilled in (True, False):
            entries = [
                entry(values_of(losses, pattern, sparsity, distilled)) for sparsity in (0.0, *SPARSITIES)
            ]
            rows.append(f"| {pattern} | {'MLM + KD' if distilled else 'MLM'} | " + " | ".join(entries) + " |")
    return "\n".join(head + rows)


def entry(values: list[float]) -> str:
    """Return one entry: mean and half the range, or a dash."""
    if not values:
        return "–"
    return f"{mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def verdicts(losses: Losses) -> list[str]:
    """Return one sentence each on distillation and on gradual pruning, either way it came out."""
    return [
        distillation_verdict(losses),
        *(gradual_verdict(losses, distilled) for distilled in (True, False)),
    ]


def distillation_verdict(losses: Losses) -> str:
    """Compare every sparse entry with and without the teacher."""
    gains = []
    for pattern in PATTERNS:
        for sparsity in SPARSITIES:
            pair = [values_of(losses, pattern, sparsity, distilled) for distilled in (False, True)]
            if all(pair):
                gains.append(mean(pair[0]) - mean(pair[1]))
    better = sum(gain > 0 for gain in gains)
    earns = "earns its keep" if better > len(gains) / 2 and mean(gains) > 0 else "does not earn its keep here"
    return (
        f"Distillation {earns}: the loss is lower with the teacher in {better} of {len(gains)} sparse entries, by "
        f"{mean(gains):.3f} nats on average (from {min(gains):+.3f} to {max(gains):+.3f})."
    )


def gradual_verdict(losses: Losses, distilled: bool) -> str:
    """Compare gradual with one-shot pruning at the same sparsity, uniform allocation, seed by seed."""
    better: list[str] = []
    worse: list[str] = []
    for sparsity in SPARSITIES:
        one_shot = values_of(losses, "uniform, one shot", sparsity, distilled)
        gradual = values_of(losses, "uniform", sparsity, distilled)
        if one_shot and gradual:
            gains = [before - after for before, after in zip(one_shot, gradual, strict=True)]
            seeds = f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
            part = f"{mean(gains):+.3f} nats at {sparsity:.0%} ({seeds})"
            (better if mean(gains) > 0 else worse).append(part)
    earns = (
        "earns its keep"
        if not worse
        else "earns its keep only in part"
        if better
        else "does not earn its keep here"
    )
    with_or_without = "with" if distilled else "without"
    return (
        f"Gradual pruning {earns} {with_or_without} the teacher: against one shot and as many steps it wins "
        f"{', '.join([*better, *worse])}."
    )


def draw(path: Path, losses: Losses) -> Path:
    """Draw loss over sparsity, a line a pattern, with (solid) and without (dashed) the teacher."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for pattern, colour in zip(PATTERNS, KIND_COLOURS, strict=False):
            for distilled in (True, False):
                points = [
                    (sparsity, mean(values))
                    for sparsity in (0.0, *SPARSITIES)
                    if (values := values_of(losses, DENSE if sparsity == 0 else pattern, sparsity, distilled))
                ]
                if pattern in ("2:4", "uniform, one shot"):
                    points = [point for point in points if point[0] > 0]
                axes.plot(
                    [100 * sparsity for sparsity, _ in points],
                    [loss for _, loss in points],
                    "-o" if distilled else "--o",
                    color=colour,
                    markersize=4,
                    label=f"{pattern}{'' if distilled else ', no teacher'}",
                )
        axes.set(
            title="Held-out loss after equal steps",
            xlabel="sparsity [%]",
            ylabel="masked-language loss [nats]",
        )
        figure.legend(loc="outside right upper")
        return save(figure, path)
