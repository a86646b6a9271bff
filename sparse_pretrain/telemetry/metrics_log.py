"""`metrics.jsonl`: one JSON object a line, one line for every step that counts, none twice."""

import json
import time
from pathlib import Path
from typing import Any

from sparse_pretrain.files import write_text
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.pruner import MaskUpdate
from sparse_pretrain.training.callback import Callback, StepReport


class MetricsLog(Callback):
    """Appends rows of kind `train`, `masks` and `evaluation`."""

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every

    def on_start(self, step: int, total_steps: int) -> None:
        """Drop rows beyond `step`: they belong to work that was lost with the previous process."""
        keep_rows_until(self._path, step)
        self._last = total_steps
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    def on_step(self, report: StepReport) -> None:
        """Write every n-th step, the first and the last."""
        if report.step % self._every and report.step not in (1, self._last):
            return
        row = {
            "loss": report.loss,
            "mlm_loss": report.mlm_loss,
            "nsp_loss": report.nsp_loss,
            "kd_loss": report.kd_loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "sparsity": report.sparsity,
            "tokens_per_second": report.real_tokens / report.seconds,
            "skipped": None if report.applied else True,
        }
        self._write("train", report.step, {name: value for name, value in row.items() if value is not None})

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Write what the update did, in total and per weight."""
        layers = {
            name: {"sparsity": masks.sparsity(name), **flips._asdict()}
            for name, flips in update.flips.items()
        }
        self._write(
            "masks",
            update.step,
            {
                "target_sparsity": update.target_sparsity,
                "sparsity": masks.total_sparsity(),
                "pruned": sum(flips.pruned for flips in update.flips.values()),
                "regrown": sum(flips.regrown for flips in update.flips.values()),
                "frozen": update.froze,
                "layers": layers,
            },
        )

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the held-out numbers."""
        self._write("evaluation", step, dict(metrics))

    def on_end(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        self._file.write(json.dumps(row) + "\n")


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
