"""A quiet console: rank 0 shows progress, everything that libraries print goes to the rank's log file."""

import os
import sys
import time

from rich.console import Console

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.telemetry.bar import progress_bar
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.training.callback import Callback, CheckpointReport, StepReport

# Where there is no terminal (a log, a pipe), progress is a line this often.
LINE_SECONDS = 10.0


def redirect_output(log: RankLog, speaks: bool) -> Console:
    """Send this process's stdout and stderr, those of C++ libraries too, to `log`.

    Returns:
        A console on the old stdout where `speaks`, a silent one elsewhere. It prints text as it is: paths
        and the messages of libraries have square brackets that are no markup.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    with log.open() as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return Console(file=terminal, quiet=not speaks, markup=False, highlight=False)


class ConsoleProgress(Callback):
    """A progress bar with the numbers people watch; plain lines where there is no terminal."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._rate = 0.0
        self._last_line = 0.0
        self._progress = progress_bar(console)
        self._task = self._progress.add_task(label, total=None, numbers="")

    def on_start(self, step: int, total_steps: int) -> None:
        """Start the bar where the run stands."""
        self._total = total_steps
        self._progress.reset(self._task, start=True, total=total_steps, completed=step)
        self._progress.start()

    def on_step(self, report: StepReport) -> None:
        """Show the step."""
        rate = report.real_tokens / report.seconds
        self._rate = rate if not self._rate else 0.9 * self._rate + 0.1 * rate
        numbers = describe_step(report, self._rate)
        self._progress.update(self._task, completed=report.step, numbers=numbers)
        if not self._console.is_terminal:
            self._print_line(report.step, numbers)

    def _print_line(self, step: int, numbers: str) -> None:
        now = time.monotonic()
        if now - self._last_line >= LINE_SECONDS or step == self._total:
            self._last_line = now
            self._console.print(f"{self._label} step {step}/{self._total}: {numbers}", soft_wrap=True)

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Say when masks freeze; single updates are in the metrics."""
        if update.froze:
            self._console.print(
                f"{self._label} step {update.step}: masks frozen at {update.sparsity:.2%} sparsity"
            )

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Show the held-out numbers."""
        shown = "  ".join(
            f"{name.removeprefix('validation_')} {value:.4f}" for name, value in metrics.items()
        )
        self._console.print(f"{self._label} step {step}: held-out {shown}", soft_wrap=True)

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Say where the checkpoint is, and what it cost."""
        self._console.print(
            f"{self._label} step {report.step}: saved {report.folder} ({report.bytes / 1e6:,.1f} MB in "
            f"{report.seconds:.1f} s, training waited {report.waited:.2f} s)",
            soft_wrap=True,
        )
        if report.warning is not None:
            self._console.print(f"{self._label} step {report.step}: {report.warning}", soft_wrap=True)

    def on_end(self) -> None:
        """Leave the finished bar on the screen."""
        self._progress.stop()


def describe_step(report: StepReport, tokens_per_second: float) -> str:
    """Return the numbers of a step on one line; how many updates were skipped so far, if any were."""
    parts = [f"loss {report.loss:.3f}", f"mlm {report.mlm_loss:.3f}"]
    if report.nsp_loss is not None:
        parts.append(f"nsp {report.nsp_loss:.3f}")
    if report.kd_loss is not None:
        parts.append(f"kd {report.kd_loss:.3f}")
    if report.sparsity is not None:
        parts.append(f"sparsity {report.sparsity:.1%}")
    if report.skipped:
        parts.append(f"{report.skipped:,} {'update' if report.skipped == 1 else 'updates'} skipped")
    parts.append(f"{tokens_per_second:,.0f} tokens/s")
    return "  ".join(parts)
