"""Predictions against real training steps on 1, 2 and 4 CPU ranks: `python -m tests.costs.validate [DEVICE.json]`.

One set of measured constants serves all cases; one factor (`Device.in_step`) was fitted once, see docs/planning.md.
Every case is run once for its time (the median of its steps, in processor time, as other work may share the machine)
and once for its peak memory, with a heap that gives back what is freed.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.costs.hardware import INTERCONNECTS, Device, find_device
from sparse_pretrain.costs.job import job_of
from sparse_pretrain.costs.measure import measure
from sparse_pretrain.costs.predict import Choice, predict
from sparse_pretrain.costs.time import Layout
from tests.costs.real_steps import SHAPES, Case, prepare_rows, real_steps, recipe_of, write_model
from tests.distributed import run_distributed

BAR = 0.15
ROUNDS, STEPS = 1, 4
DENSE, PRUNING, TEACHER = "dense", "pruning", "pruning + teacher"
MIB = 2**20
CASES = [
    *(
        Case(model=model, length=length, rows=1024 // length, mode=mode)
        for model in SHAPES
        for length in (128, 512)
        for mode in (DENSE, TEACHER)
    ),
    Case(mode=PRUNING),
    Case(precision="fp32"),
    Case(precision="fp32", model="l4-256", length=512, rows=2, mode=TEACHER),
    Case(passes=2),
    Case(ranks=2),
    Case(ranks=2, mode=TEACHER),
    Case(ranks=2, stage=1, mode=PRUNING),
    Case(ranks=2, model="l4-256", length=512, rows=2, mode=TEACHER),
    Case(ranks=4),
    Case(ranks=4, model="l4-256", mode=TEACHER),
]


def compare(device: Device, cases: Sequence[Case], rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Run every case and predict it; return both, and the errors."""
    with tempfile.TemporaryDirectory(prefix="validate-") as name:
        place = Path(name)
        for length in {case.length for case in cases}:
            prepare_rows(place / f"rows-{length}", length)
        for model in {case.model for case in cases}:
            write_model(place / f"model-{model}", model)
        found: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
        peaks: dict[Case, float] = {}
        for number in range(rounds + 1):
            for case in cases:
                tidy = number == rounds
                ranks = run_distributed(real_steps, case.ranks, case, name, 0 if tidy else STEPS, tidy)
                if tidy:
                    peaks[case] = max(numbers["peak_bytes"] for numbers in ranks)
                else:
                    found[case].append(ranks[0])
                    print(f"{case.ranks} x {case.name}: {ranks[0]['all']}", file=sys.stderr, flush=True)
        return [compared(device, case, found[case], peaks[case], place) for case in cases]


def compared(
    device: Device, case: Case, runs: Sequence[dict[str, Any]], peak: float, place: Path
) -> dict[str, Any]:
    """Return a case's measured and predicted numbers."""
    job = job_of(recipe_of(case, place), device)
    layout = Layout(case.ranks, case.ranks, INTERCONNECTS["ethernet-25g"])
    predicted = predict(job, Choice(case.stage, case.rows), device, layout)
    # The quietest round: what else runs here can only lengthen a step.
    seconds = min(statistics.median(run["all"]) for run in runs)
    return {
        "case": case.name,
        "ranks": case.ranks,
        "seconds": seconds,
        "wall": min(run["wall"] for run in runs),
        "predicted_seconds": predicted.time.seconds,
        "time_error": predicted.time.seconds / seconds - 1,
        "peak_bytes": peak,
        "predicted_bytes": predicted.memory["total"],
        "memory_error": predicted.memory["total"] / peak - 1,
        "terms": predicted.time.terms,
        "memory": predicted.memory,
    }


def render(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print one line a case, and how many are within the bar."""
    table = Table("ranks", "case", "step, s", "predicted", "error", "peak, MiB", "predicted", "error")
    for row in rows:
        table.add_row(
            str(row["ranks"]),
            row["case"],
            f"{row['seconds']:.3f}",
            f"{row['predicted_seconds']:.3f}",
            f"{row['time_error']:+.0%}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{row['predicted_bytes'] / MIB:,.0f}",
            f"{row['memory_error']:+.0%}",
        )
    console.print(table)
    for name in ("time_error", "memory_error"):
        errors = [abs(row[name]) for row in rows]
        within = sum(error <= BAR for error in errors)
        console.print(
            f"{name.replace('_', ' ')}: {within} of {len(errors)} within {BAR:.0%}, "
            f"median {statistics.median(errors):.1%}, largest {max(errors):.1%}"
        )


def main() -> None:
    """Measure this machine, or read a device file, and hold predictions against steps."""
    device = find_device(sys.argv[1]) if len(sys.argv) > 1 else measure()
    rows = compare(device, CASES)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(rows, indent=2), encoding="utf-8")
    render(rows, Console(width=140))


if __name__ == "__main__":
    main()
