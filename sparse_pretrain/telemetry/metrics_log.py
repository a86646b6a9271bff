"""`metrics.jsonl`: one JSON object a line, one line for every step that counts, none twice."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_pretrain.files import write_text
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.telemetry.mask_numbers import common_threshold, mean_dead_rows
from sparse_pretrain.training.callback import Callback, CheckpointReport, StepReport, is_logged


class MetricsLog(Callback):
    """Appends rows of kind `train`, `masks`, `evaluation` and `checkpoint`.

    Numbers that a run does not have are left out; one that is NaN or infinite is written as null.
    """

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every

    def on_start(self, step: int, total_steps: int) -> None:
        """Drop rows beyond `step`: they belong to work that was lost with the previous process.

        A run that starts at step 0 writes that step's masks again, so nothing is kept then.
        """
        keep_rows_until(self._path, step if step else -1)
        self._last = total_steps
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def on_step(self, report: StepReport) -> None:
        """Write every n-th step, the first, the last, and every one whose update was skipped."""
        if is_logged(report.step, self._every, self._last) or not report.applied:
            self._write("train", report.step, step_numbers(report))

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Write what the update did, in total and per weight."""
        values = {
            "target_sparsity": update.target_sparsity,
            "sparsity": update.sparsity,
            "pruned": update.pruned,
            "regrown": update.regrown,
            "threshold": common_threshold(update),
            "dead_rows": mean_dead_rows(update),
            "frozen": update.froze,
            "layers": {name: asdict(layer) for name, layer in update.layers.items()},
        }
        self._write(
            "masks", update.step, {name: value for name, value in values.items() if value is not None}
        )

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the held-out numbers."""
        self._write("evaluation", step, dict(metrics))

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """Write what a save cost."""
        values = {"bytes": report.bytes, "seconds": report.seconds, "waited": report.waited}
        self._write("checkpoint", report.step, values)

    def on_end(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        self._file.write(json.dumps(without_nan(row), allow_nan=False) + "\n")


def step_numbers(report: StepReport) -> dict[str, Any]:
    """Return a step's row: `applied` only where it is false, parts of the distillation as `kd_<part>`."""
    numbers = {
        "loss": report.loss,
        "mlm_loss": report.mlm_loss,
        "nsp_loss": report.nsp_loss,
        "kd_loss": report.kd_loss,
        **{f"kd_{part}": value for part, value in report.kd_parts.items()},
        "temperature": report.temperature,
        "teacher_agreement": report.teacher_agreement,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "sparsity": report.sparsity,
        "tokens_per_second": report.real_tokens / report.seconds,
        "skipped": report.skipped,
        "applied": None if report.applied else False,
    }
    return {name: value for name, value in numbers.items() if value is not None}


def without_nan(value: Any) -> Any:
    """Return JSON-able data with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keep_rows_until(path: Path, step: int) -> None:
    """Rewrite a metrics file without rows after `step`, and without a half-written last line."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
