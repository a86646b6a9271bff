"""TensorBoard scalars and histograms."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.update import MaskUpdate
from sparse_pretrain.telemetry.mask_numbers import common_threshold, mean_dead_rows
from sparse_pretrain.telemetry.metrics import finite
from sparse_pretrain.training.callback import Callback, StepReport, is_logged

# A sample this large draws the same histogram as the whole of a BERT-large matrix.
HISTOGRAM_SAMPLE = 200_000
# TensorBoard's bins end at 1e20, and a histogram outside of them is an error: a run that diverges must live
# until the guard says so.
LARGEST = 1e19


class TensorBoardWriter(Callback):
    """Writes event files under the run folder; a resumed run purges what lies beyond its checkpoint."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder = folder
        self._every = every

    def on_start(self, step: int, total_steps: int) -> None:
        """Open the event file; at step 0 everything that an earlier start wrote is purged."""
        self._last = total_steps
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else 0)

    def on_step(self, report: StepReport) -> None:
        """Write losses and their parts, learning rate, gradient norm, skipped updates, sparsity and speed."""
        if not is_logged(report.step, self._every, self._last) and report.applied:
            return
        scalars = {
            "loss/total": report.loss,
            "loss/mlm": report.mlm_loss,
            "loss/nsp": report.nsp_loss,
            "loss/kd": report.kd_loss,
            **{f"distillation/{part}": value for part, value in report.kd_parts.items()},
            "distillation/temperature": report.temperature,
            "distillation/teacher_agreement": report.teacher_agreement,
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": report.gradient_norm,
            "train/skipped_updates": report.skipped,
            "train/tokens_per_second": report.real_tokens / report.seconds,
            "pruning/sparsity": report.sparsity,
        }
        self._scalars(scalars, report.step)

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Write target, threshold, flips and dead rows, in total and per weight.

        A threshold that all weights share is one curve, `pruning/threshold`; others are one a weight.
        """
        shared = common_threshold(update)
        self._scalars(
            {
                "pruning/target_sparsity": update.target_sparsity,
                "pruning/pruned": update.pruned,
                "pruning/regrown": update.regrown,
                "pruning/threshold": shared,
                "pruning/dead_rows": mean_dead_rows(update),
            },
            update.step,
        )
        for name, layer in update.layers.items():
            scalars = {
                f"sparsity/{name}": layer.sparsity,
                f"pruned/{name}": layer.pruned,
                f"regrown/{name}": layer.regrown,
                f"dead_rows/{name}": layer.dead_rows,
                f"threshold/{name}": finite(layer.threshold) if shared is None else None,
            }
            self._scalars(scalars, update.step)

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the held-out numbers."""
        for name, value in metrics.items():
            self._scalars({f"validation/{name.removeprefix('validation_')}": value}, step)

    def on_weight(self, step: int, name: str, weight: Tensor) -> None:
        """Write the histogram of a weight's fp32 master, without NaN; none where nothing is left."""
        flat = weight.reshape(-1)
        sample = flat[:: max(1, flat.numel() // HISTOGRAM_SAMPLE)]
        sample = sample[~sample.isnan()].clamp(-LARGEST, LARGEST)
        if sample.numel():
            self._writer.add_histogram(f"weights/{name}", sample.cpu(), step)

    def on_end(self) -> None:
        """Flush and close."""
        self._writer.close()

    def _scalars(self, scalars: Mapping[str, float | None], step: int) -> None:
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
