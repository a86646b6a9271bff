"""`sparse-pretrain gap`: how far a sparse model is from its dense one on labelled tasks, by tokens of pruning.

One teacher; from it one sparse model for every number of pruning steps; then every task fine-tuned from the teacher
itself, and from every sparse model with and without distillation (paper section 3.3). Resumable: what is finished
is kept, and further numbers of steps can be added.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.demo.settings import FULL, Task
from sparse_pretrain.demo.story import RELEASE, StageFailedError, train_and_release
from sparse_pretrain.files import write_json
from sparse_pretrain.finetune.campaign import campaign, headline
from sparse_pretrain.finetune.recipe import FinetuneRecipe
from sparse_pretrain.study.gap_report import write_report
from sparse_pretrain.study.start import prepare_teacher

REPORT = "gap.json"
# Of the ramp and of all mask updates, in updates; the paper's 50,000 and 80,000 of 100,000 steps are 50 and 80 %.
UPDATES, RAMP_UPDATES, LAST_UPDATE = 50, 25, 40
ROWS = 16


@dataclass(frozen=True)
class Entry:
    """One entry of the table: seeds of one task, from one model, in one way.

    Attributes:
        task: which task.
        steps: of pruning; 0: the dense model.
        distilled: whether a dense model fine-tuned on the task is followed.
    """

    task: Task
    steps: int
    distilled: bool

    @property
    def name(self) -> str:
        """Its folder below the task's."""
        return f"sparse-{self.steps}-{'kd' if self.distilled else 'plain'}" if self.steps else "dense"


def run_gap(output: Path, steps: Sequence[int], seeds: Sequence[int], workers: int, console: Console) -> int:
    """Do what is not done yet, then write `gap.json`, `gap.md` and `gap.png`.

    Args:
        output: folder of everything; run the same command again to go on.
        steps: of pruning, a sparse model each (16 rows of 128 tokens a step).
        seeds: of every fine-tuning.
        workers: fine-tunings at a time.
        console: for the user.

    Returns:
        0, or the exit code of the training that failed.

    Raises:
        UserError: the user's mistakes.
    """
    try:
        prepare_teacher(output, console)
        console.print(Rule(f"2/3  pruning to 85 %: {', '.join(f'{count:,}' for count in steps)} steps"))
        for count in steps:
            train_and_release("demo-prune", pruned(output, count), pruning_of(output, count), console)
    except StageFailedError as failure:
        return failure.code
    console.print(Rule(f"3/3  fine-tuning with {len(seeds)} seeds"))
    results = {
        entry: finetuned(output, entry, seeds, workers, console) for entry in entries(FULL.tasks, steps)
    }
    manifest = read_manifest(output / "data")
    tokens_a_step = ROWS * manifest.sequence_length * manifest.fill("train")
    report = [
        {
            "task": entry.task.name,
            "title": entry.task.title,
            "pruning_steps": entry.steps,
            "pruning_tokens": round(entry.steps * tokens_a_step),
            "distilled": entry.distilled,
            **result,
        }
        for entry, result in results.items()
    ]
    write_json(output / REPORT, report)
    write_report(output, report, console)
    return 0


def pruned(output: Path, steps: int) -> Path:
    """Return the run folder of the model that is pruned in so many steps."""
    return output / "pruned" / str(steps)


def pruning_of(output: Path, steps: int) -> list[str]:
    """Return the settings of a pruning run: the paper's proportions, whatever its length."""
    every = max(1, steps // UPDATES)
    teacher = output / "teacher" / RELEASE
    return [
        f"data.path={output / 'data'}",
        f"model.source={teacher}",
        f"distillation.teacher={teacher}",
        f"steps={steps}",
        f"pruning.frequency={every}",
        f"pruning.ramp_end={RAMP_UPDATES * every}",
        f"pruning.end={LAST_UPDATE * every}",
        f"checkpoint.every={max(1, min(steps, 100))}",
        f"evaluation.every={max(1, steps // 4)}",
        "logging.histograms_every=0",
    ]


def entries(tasks: Sequence[Task], steps: Sequence[int]) -> Iterator[Entry]:
    """Yield the table's entries: every task dense, then from every sparse model with and without distillation."""
    for task in tasks:
        yield Entry(task, 0, False)
        for count in steps:
            for distilled in (True, False):
                yield Entry(task, count, distilled)


def finetuning_of(output: Path, entry: Entry, seeds: Sequence[int]) -> list[str]:
    """Return the settings of an entry: the task's recipe as it is, but for the model and its teacher."""
    folder = output / "tasks" / entry.task.name
    dense = output / "teacher" / RELEASE
    settings = [
        f"output={folder / entry.name}",
        f"model={pruned(output, entry.steps) / RELEASE if entry.steps else dense}",
        f"seeds=[{','.join(map(str, seeds))}]",
        *entry.task.overrides,
    ]
    if entry.distilled:
        own = folder / "teachers"
        settings.append(f"distillation={{teacher: auto, dense: {dense}, teachers: {own}}}")
    return settings


def finetuned(
    output: Path, entry: Entry, seeds: Sequence[int], workers: int, console: Console
) -> dict[str, Any]:
    """Fine-tune with every seed that has no result yet; return the headline metric's mean, deviation and values."""
    recipe = load_recipe(entry.task.recipe, finetuning_of(output, entry, seeds), FinetuneRecipe)
    result = campaign(recipe, False, console, workers)
    (point,) = result["points"]
    return {
        "metric": result["metric"],
        **headline(point, result["metric"]),
        "sparsity": point["sparsity"],
        "nonzero_outside_masks": point["nonzero_outside_masks"],
    }
