"""What a fine-tuning run shows and writes while it trains: one bar, one line of metrics per log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from transformers import TrainerCallback

from sparse_pretrain.files import write_text
from sparse_pretrain.finetune.tasks import VALIDATION
from sparse_pretrain.telemetry.bar import progress_bar
from sparse_pretrain.telemetry.metrics import read_rows

Measure = Callable[[], dict[str, Any]]


class ProgressReport(TrainerCallback):
    """A progress bar (plain lines where there is no terminal) and `metrics.jsonl`."""

    def __init__(self, console: Console, label: str, log: Path | None, measure: Measure | None) -> None:
        """Report under `label`; `measure`, when given, is called after every epoch but the last.

        Ranks that only take part in the measurements have no `log`, and a console that is silent.
        """
        self._console = console
        self._label = label
        self._measure = measure
        self._log = log
        self._file: TextIO | None = None
        self._numbers = ""
        self._progress = progress_bar(console)
        self._task = self._progress.add_task(label, total=None, numbers="")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar and the file; of a run that goes on, behind what it has already."""
        if self._log is not None:
            write_text(self._log, "".join(lines_until(self._log, state.global_step)))
            self._file = self._log.open("a", encoding="utf-8", buffering=1)
        self._progress.reset(self._task, start=True, total=state.max_steps, completed=state.global_step)
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=state.global_step, numbers=self._numbers)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the training loss (mean since the last row), gradient norm and learning rate."""
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:
            return
        self._numbers = f"loss {logs['loss']:.3f}"
        names = {"grad_norm": "gradient_norm"}
        self._write("train", state, {names.get(name, name): float(value) for name, value in logs.items()})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the held-out data, except at the very end, which the run itself measures."""
        if self._measure is None or state.global_step >= state.max_steps:
            return
        metrics = self._measure()
        self._write("evaluation", state, {"split": VALIDATION, **metrics})
        shown = "  ".join(
            f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float)
        )
        self._console.print(f"{self._label} epoch {round(state.epoch)}: {shown}", soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        self.stop()

    def stop(self) -> None:
        """Close bar and file; also for a run that fails."""
        self._progress.stop()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, kind: str, state: Any, values: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(metrics_row(kind, state.global_step, state.epoch, values))


def lines_until(log: Path, step: int) -> list[str]:
    """Return the whole lines of a log up to a step."""
    return [json.dumps(row) + "\n" for row in read_rows(log) if row["step"] <= step]


def metrics_row(kind: str, step: int, epoch: float, values: dict[str, Any]) -> str:
    """Return a line of `metrics.jsonl`: `train` or `evaluation`, steps and epochs done, numbers."""
    return json.dumps({"kind": kind, "step": step, "epoch": epoch, **values}) + "\n"
