"""`report.json`: every number that the demo shows, and where each comes from."""

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.checkpoint.inspect import inspect
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.manifest import Manifest
from sparse_pretrain.demo.figures import plot_scores
from sparse_pretrain.demo.settings import RANKS, Task
from sparse_pretrain.files import read_json
from sparse_pretrain.telemetry.metrics import of_kind, read_rows
from sparse_pretrain.telemetry.plots import plot_run
from sparse_pretrain.training.provenance import git_commit, versions

Report = dict[str, Any]
MODELS = ("dense", "sparse")
CAVEAT = (
    "A small demonstration: a 6-layer MiniLM, minutes of training, a few million tokens. Not the paper's corpus "
    "(Wikipedia + BookCorpus), model (BERT) or budget (100,000 steps of 256 rows, twice), and its scores are not "
    "the paper's. The encoder was tuned on sentence likeness before, so STS-B flatters it."
)


def build_report(
    output: Path, tasks: Sequence[Task], seconds: dict[str, float], manifest: Manifest
) -> Report:
    """Collect the results of the finished stages under `output`.

    Args:
        output: the demo's folder.
        tasks: the fine-tuning tasks.
        seconds: of every stage.
        manifest: of the prepared data.
    """
    student, teacher = (inspect(output / run / "release") for run in ("student", "teacher"))
    return {
        "what_this_is": CAVEAT,
        "data": {
            "fingerprint": manifest.fingerprint,
            "sources": [
                {"name": source.name, "documents": source.documents, "characters": source.characters}
                for source in manifest.sources
            ],
            "train_rows": manifest.splits["train"].rows,
            "train_tokens": manifest.splits["train"].tokens,
            "validation_rows": manifest.splits["validation"].rows,
            "evaluated_rows": min(
                load_recipe("demo-prune", [], TrainRecipe).evaluation.rows, manifest.splits["validation"].rows
            ),
            "sequence_length": manifest.sequence_length,
        },
        "pretraining": {
            "dense": pretraining_numbers(output / "teacher"),
            "sparse": pretraining_numbers(output / "student"),
        },
        "sparsity": {
            "overall": student["prunable"]["sparsity"],
            "dense": teacher["prunable"]["sparsity"],
            "prunable_weights": student["prunable"]["weights"],
            "mask_check": student["check"],
            "layers": {layer["name"]: layer["sparsity"] for layer in student["layers"]},
        },
        "tasks": {task.name: task_numbers(output, task) for task in tasks},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "ranks": RANKS,
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": {"cpu_cores": os.cpu_count(), "processor": platform.machine()},
    }


def pretraining_numbers(run: Path) -> dict[str, float]:
    """Return the last held-out numbers of a run, and what it was trained on."""
    rows = read_rows(run / "metrics.jsonl")
    last = of_kind(rows, "evaluation")[-1]
    train = of_kind(rows, "train")
    rates = sorted(row["tokens_per_second"] for row in train)
    return {
        "steps": last["step"],
        "validation_mlm_loss": last["validation_mlm_loss"],
        "validation_mlm_accuracy": last["validation_mlm_accuracy"],
        "median_tokens_per_second": rates[len(rates) // 2],
    }


def task_numbers(output: Path, task: Task) -> dict[str, Any]:
    """Return both models' scores on a task and the numbers of examples."""
    results = {
        kind: read_json(output / "finetune" / f"{task.name}-{kind}" / "metrics.json") for kind in MODELS
    }
    return {
        "title": task.title,
        "metric": results["dense"]["metric"],
        **{kind: results[kind]["score"] for kind in MODELS},
        "examples": results["dense"]["examples"],
        "nonzero_outside_masks": results["sparse"]["nonzero_outside_masks"],
        "train_seconds": {kind: results[kind]["train_seconds"] for kind in MODELS},
    }


def render_report(report: Report, output: Path, console: Console) -> None:
    """Print the table and say where the pictures are."""
    dense, sparse = (report["pretraining"][kind] for kind in MODELS)
    overall = report["sparsity"]["overall"]
    table = Table(title="dense and sparse, the same way through everything")
    for column, justify in (
        ("", "left"),
        ("dense", "right"),
        (f"sparse {overall:.0%}", "right"),
        ("on", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    rows = (
        f"{report['data']['validation_rows']:,} held-out rows, the first {report['data']['evaluated_rows']:,}"
    )
    table.add_row(
        "zeros in the encoder's matrices",
        f"{report['sparsity']['dense']:.2%}",
        f"{overall:.2%}",
        "prunable weights",
    )
    table.add_row(
        "held-out MLM loss",
        f"{dense['validation_mlm_loss']:.3f}",
        f"{sparse['validation_mlm_loss']:.3f}",
        rows,
    )
    accuracies = (f"{numbers['validation_mlm_accuracy']:.1%}" for numbers in (dense, sparse))
    table.add_row("masked-token accuracy", *accuracies, rows)
    for task in report["tasks"].values():
        counted = f"{task['examples']['validation']:,} held out, trained on {task['examples']['train']:,}"
        table.add_row(
            f"{task['title']}: {task['metric']}", f"{task['dense']:.3f}", f"{task['sparse']:.3f}", counted
        )
    console.print(table)
    outside = sum(task["nonzero_outside_masks"] for task in report["tasks"].values())
    console.print(f"weights outside the masks that are not zero after fine-tuning: {outside}")
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    console.print(f"time: {spent}", soft_wrap=True)
    console.print(report["what_this_is"], style="dim", soft_wrap=True)
    for path in pictures(report, output):
        console.print(f"picture: {path}", soft_wrap=True)
    console.print(f"every number: {output / 'report.json'}", soft_wrap=True)


def pictures(report: Report, output: Path) -> list[Path]:
    """Draw the runs and the scores; return the pictures worth opening, all in `output/plots`."""
    folder = output / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    plot_run(output / "teacher")
    plot_run(output / "student")
    overview = folder / "overview.png"
    shutil.copyfile(output / "student" / "plots" / "overview.png", overview)
    return [overview, plot_scores(report, folder / "scores.png")]
