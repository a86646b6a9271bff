"""`sparse-pretrain study`: data and teacher once, then every cell as a training run of its own; resumable."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import yaml
from rich.console import Console
from rich.rule import Rule

from sparse_pretrain.checkpoint.layout import CHECKPOINTS
from sparse_pretrain.demo.story import RELEASE, StageFailedError
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json, write_text
from sparse_pretrain.study.grid import Cell, cells, recipe_of
from sparse_pretrain.study.report import write_report
from sparse_pretrain.study.start import prepare_teacher
from sparse_pretrain.telemetry.bar import progress_bar
from sparse_pretrain.telemetry.metrics import of_kind, read_rows

RESULT = "result.json"
SETTINGS = "study.json"


def run_study(output: Path, steps: int, seeds: int, workers: int, console: Console) -> int:
    """Run every cell that has no result yet, then write table and picture.

    Args:
        output: the study's folder; run the same command again to go on.
        steps: optimizer steps of every cell (8 rows of 128 tokens each).
        seeds: runs of every cell.
        workers: runs at the same time, one thread each.
        console: for the user.

    Returns:
        0, or the exit code of the teacher's run when that failed.

    Raises:
        UserError: `output` holds a study of other steps, or a cell failed.
    """
    check_settings(output, steps)
    try:
        prepare_teacher(output, console)
    except StageFailedError as failure:
        return failure.code
    grid = list(cells(seeds))
    console.print(Rule(f"2/3  {len(grid)} runs of {steps} steps, {workers} at a time"))
    run_cells(output, grid, steps, workers, console)
    console.print(Rule("3/3  what came out"))
    write_report(output, {cell: result_of(output, cell) for cell in grid}, steps, console)
    return 0


def check_settings(output: Path, steps: int) -> None:
    """Refuse to mix runs of different lengths."""
    path = output / SETTINGS
    if path.is_file() and read_json(path)["steps"] != steps:
        raise UserError(
            f"--steps = {steps}: {output} holds a study of {read_json(path)['steps']} steps; give another --output"
        )
    write_json(path, {"steps": steps})


def run_cells(output: Path, grid: Sequence[Cell], steps: int, workers: int, console: Console) -> None:
    """Run the cells without a result, `workers` at a time.

    Raises:
        UserError: a run failed; the others that were under way are finished first.
    """
    missing = [cell for cell in grid if not (folder_of(output, cell) / RESULT).is_file()]
    with progress_bar(console) as bar, ThreadPoolExecutor(workers) as pool:
        task = bar.add_task("runs", total=len(grid), completed=len(grid) - len(missing), numbers="")
        waiting: dict[Future[None], Cell] = {
            pool.submit(run_cell, output, cell, steps): cell for cell in missing
        }
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                cell = waiting.pop(future)
                if future.exception() is not None:
                    for other in waiting:
                        other.cancel()
                    raise future.exception() or RuntimeError(cell.name)
                loss = result_of(output, cell)
                bar.update(task, advance=1, numbers=f"{cell.name}: {loss:.3f}")
                if not console.is_terminal:
                    console.print(f"{cell.name}: held-out loss {loss:.3f}")


def run_cell(output: Path, cell: Cell, steps: int) -> None:
    """Train one cell in a process of its own and keep its last held-out numbers."""
    folder = folder_of(output, cell)
    paths = {
        "output": str(folder),
        "data": str(output / "data"),
        "teacher": str(output / "teacher" / RELEASE),
    }
    recipe = folder / "cell.yaml"
    write_text(recipe, yaml.safe_dump(recipe_of(cell, steps, paths), sort_keys=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [sys.executable, "-m", "sparse_pretrain", "train", str(recipe)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = of_kind(read_rows(folder / "metrics.jsonl"), "evaluation")
    if finished.returncode or not rows or rows[-1]["step"] != steps:
        last = (finished.stderr or finished.stdout).strip().splitlines()[-1:]
        raise UserError(f"{folder}: exit code {finished.returncode}: {' '.join(last)}; see its logs")
    write_json(folder / RESULT, rows[-1])
    # Weights and moments of seventy runs would fill a disk; the numbers are what the study is for.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def folder_of(output: Path, cell: Cell) -> Path:
    """Return the run folder of a cell."""
    return output / "cells" / cell.name


def result_of(output: Path, cell: Cell) -> float:
    """Return a finished cell's held-out loss, in nats per masked token."""
    return float(read_json(folder_of(output, cell) / RESULT)["validation_mlm_loss"])
