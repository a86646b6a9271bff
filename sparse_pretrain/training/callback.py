"""What the loop tells whoever listens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.update import MaskUpdate


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, over all ranks.

    Attributes:
        step: steps done, this one included.
        loss: the weighted total.
        mlm_loss: unweighted mean, nats per predicted token.
        nsp_loss: unweighted mean, nats per row; None where there is no such part.
        kd_loss: KD, the sum of `kd_parts` times the weights that the recipe gives them, without `kd_weight`;
            with logits alone and `logits_weight` 1 nats per compared position. None without a teacher.
        learning_rate: that this step used.
        gradient_norm: global, before clipping.
        sparsity: share of zeros over all prunable weights, after this step; None without pruning.
        real_tokens: non-padding tokens of the global batch.
        seconds: wall-clock time of the step.
        applied: False when the update was skipped on all ranks: a gradient or the loss was not a number.
        skipped: updates skipped so far in this run, this one included.
        kd_parts: unweighted means of what `kd_loss` is made of ("logits", "hidden", "attention",
            "embeddings"); empty without a teacher.
        temperature: of the logits' distillation at this step; None without a teacher.
        teacher_agreement: share of the predicted (masked) positions where student and teacher name the
            same token first; None without a teacher and on steps where it was not measured.
    """

    step: int
    loss: float
    mlm_loss: float
    nsp_loss: float | None
    kd_loss: float | None
    learning_rate: float
    gradient_norm: float
    sparsity: float | None
    real_tokens: float
    seconds: float
    applied: bool
    skipped: int = 0
    kd_parts: Mapping[str, float] = field(default_factory=dict)
    temperature: float | None = None
    teacher_agreement: float | None = None


@dataclass(frozen=True)
class CheckpointReport:
    """A committed checkpoint.

    Attributes:
        step: that it holds; training may be a few steps further.
        folder: where it lies.
        bytes: of all its files.
        seconds: from the moment it was begun.
        waited: seconds of those that training stood still.
        warning: what went wrong beside it.
    """

    step: int
    folder: Path
    bytes: int
    seconds: float
    waited: float
    warning: str | None = None


def is_logged(step: int, every: int, last: int) -> bool:
    """Say whether a step's numbers are recorded: the first, the last, and every `every`-th step.

    Args:
        step: counted from 1.
        every: the recipe's `logging.every`.
        last: the run's last step.
    """
    return step in (1, last) or step % every == 0


class Callback:
    """Base of everything that listens to a run. Every method does nothing by default.

    Told on rank 0 only, but for those that `Trainer.add_listener` adds on other ranks.
    """

    def on_start(self, step: int, total_steps: int) -> None:
        """Training starts, or continues, after `step` steps of `total_steps`."""

    def on_phase(self, phase: str) -> None:
        """The rank goes over to "training", "evaluating" or "saving"; it may be in it already."""

    def on_step(self, report: StepReport) -> None:
        """An optimizer step is done."""

    def on_masks(self, update: MaskUpdate, masks: MaskSet) -> None:
        """Masks were updated."""

    def on_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Held-out loss and accuracy were measured after `step` steps."""

    def on_weight(self, step: int, name: str, weight: Tensor) -> None:
        """The whole fp32 master of one prunable weight, every `logging.histograms_every` steps."""

    def on_checkpoint(self, report: CheckpointReport) -> None:
        """A checkpoint was committed."""

    def on_end(self) -> None:
        """The run ends, however it ends."""
