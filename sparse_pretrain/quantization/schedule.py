"""When ranges are observed and values rounded during training."""

from typing import Any

from transformers import TrainerCallback

from sparse_pretrain.quantization.prepare import set_phase


class QuantizationSchedule(TrainerCallback):
    """First ranges are observed and nothing is rounded; then both; then the ranges stand still.

    Usable in anybody's `Trainer`, for a model that went through `prepare_quantization`.
    """

    def __init__(self, calibration_steps: int, freeze_step: int) -> None:
        """Round from optimizer step `calibration_steps` on, freeze ranges at `freeze_step` (counted from 0)."""
        self.calibration_steps = calibration_steps
        self.freeze_step = freeze_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the phase of the step that begins."""
        step = state.global_step
        set_phase(kwargs["model"], observe=step < self.freeze_step, rounding=step >= self.calibration_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model as it is used: rounded, ranges fixed."""
        set_phase(kwargs["model"], observe=False, rounding=True)
