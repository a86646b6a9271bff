"""The recipe of `sparse-pretrain train`: teacher preparation and student pruning are two recipes of it."""

from typing import Literal

from pydantic import Field, model_validator

from sparse_pretrain.config.base import Section, UserPath
from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.config.model import DataSection, MaskingSection, ModelSection
from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.config.training import (
    BatchSection,
    CheckpointSection,
    EngineSection,
    EvaluationSection,
    GuardSection,
    LearningRateSection,
    LoggingSection,
    OptimizerSection,
)

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainRecipe(Section):
    """Everything a pre-training run needs to know."""

    output: UserPath = Field(description="run folder: checkpoints, logs, metrics, plots")
    seed: int = Field(42, ge=0)
    steps: int = Field(ge=1, description="optimizer steps")
    precision: Precision = Field("auto", description="auto: bf16 where the hardware is fast at it")
    model: ModelSection
    data: DataSection
    masking: MaskingSection = MaskingSection()
    batch: BatchSection = BatchSection()
    optimizer: OptimizerSection = OptimizerSection()
    learning_rate: LearningRateSection = LearningRateSection()
    pruning: PruningSection | None = None
    distillation: DistillationSection | None = None
    engine: EngineSection = EngineSection()
    checkpoint: CheckpointSection = CheckpointSection()
    evaluation: EvaluationSection = EvaluationSection()
    guard: GuardSection = GuardSection()
    logging: LoggingSection = LoggingSection()

    @property
    def warmup_steps(self) -> int:
        """Steps of learning-rate warm-up, rounded to a whole step."""
        return round(self.learning_rate.warmup * self.steps)

    @model_validator(mode="after")
    def _attention_is_returned(self) -> "TrainRecipe":
        compared = self.distillation is not None and self.distillation.attention is not None
        if compared and self.model.attention == "sdpa":
            raise ValueError(
                "model.attention = sdpa returns no attention maps, which distillation.attention compares: "
                "set model.attention to eager, or leave it at auto"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> "TrainRecipe":
        if self.pruning is not None and self.pruning.end > self.steps:
            raise ValueError(f"pruning.end = {self.pruning.end} lies beyond steps = {self.steps}")
        if self.learning_rate.kind == "rewinding":
            self._check_rewinding()
        if self.learning_rate.kind == "cyclic":
            self._check_cycle(self.learning_rate.cycle_steps or 0)
        return self

    def _check_rewinding(self) -> None:
        pruning = self.pruning
        if pruning is None:
            raise ValueError("learning_rate.kind = rewinding needs a pruning section: it replays its ramp")
        if pruning.schedule in ("one_shot", "constant") or pruning.ramp_end == pruning.begin:
            raise ValueError(
                f"learning_rate.kind = rewinding replays the ramp, and pruning.schedule = {pruning.schedule} "
                "has none: use linear, constant or cyclic, or a schedule that rises"
            )
        decay = self.steps - (pruning.ramp_end - pruning.begin)
        if decay <= self.warmup_steps:
            raise ValueError(
                f"learning_rate.kind = rewinding needs steps - ramp > warm-up, got {decay} <= "
                f"{self.warmup_steps}: shorten the ramp or the warm-up"
            )

    def _check_cycle(self, cycle: int) -> None:
        if cycle > self.steps:
            raise ValueError(f"learning_rate.cycle_steps = {cycle} lies beyond steps = {self.steps}")
        if self.warmup_steps >= cycle:
            raise ValueError(
                f"learning_rate.cycle_steps = {cycle}: the warm-up of {self.warmup_steps} steps must end within "
                "the first cycle; lower learning_rate.warmup"
            )
