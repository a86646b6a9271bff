"""TensorBoard scalars and histograms."""

from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.pruner import MaskUpdate
from sparse_pretrain.training.callback import Callback, StepReport

# A sample this large draws the same histogram as the whole of a BERT-large matrix.
HISTOGRAM_SAMPLE = 200_000


class TensorBoardWriter(Callback):
    """Writes event files under the run folder; a resumed run purges what lies beyond its checkpoint."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder = folder
        self._every = every

    def on_start(self, step: int, total_steps: int) -> None:
        """Open the event file."""
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)

    def on_step(self, report: StepReport) -> None:
        """Write loss parts, learning rate, gradient norm, sparsity and speed."""
        if report.step % self._every and report.step != 1:
            return
        scalars = {
            "loss/total": report.loss,
            "loss/mlm": report.mlm_loss,
            "loss/nsp": report.nsp_loss,
            "loss/kd": report.kd_loss,
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": report.gradient_norm,
            "train/tokens_per_second": report.real_tokens / report.seconds,
            "pruning/sparsity": report.sparsity,
        }
        for name, value in scalars.items():
            if value is not None:
                self._scalar(name, value, report.step)

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Write target, flips, and sparsity per weight."""
        self._scalar("pruning/target_sparsity", update.target_sparsity, update.step)
        self._scalar("pruning/pruned", sum(flips.pruned for flips in update.flips.values()), update.step)
        self._scalar("pruning/regrown", sum(flips.regrown for flips in update.flips.values()), update.step)
        for name in masks:
            self._scalar(f"sparsity/{name}", masks.sparsity(name), update.step)

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the held-out numbers."""
        for name, value in metrics.items():
            self._scalar(f"validation/{name.removeprefix('validation_')}", value, step)

    def on_weight(self, step: int, name: str, weight: Tensor) -> None:
        """Write the histogram of a weight's fp32 master."""
        flat = weight.reshape(-1)
        sample = flat[:: max(1, flat.numel() // HISTOGRAM_SAMPLE)]
        self._writer.add_histogram(f"weights/{name}", sample.cpu(), step)

    def on_end(self) -> None:
        """Flush and close."""
        self._writer.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
