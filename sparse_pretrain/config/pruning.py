"""Recipe sections of the method: pruning and distillation."""

from typing import Literal

from pydantic import Field, model_validator

from sparse_pretrain.config.base import ModelSource, Section


class PruningSection(Section):
    """Gradual magnitude pruning (Zhu & Gupta 2017) as Prune Once for All uses it, section 4.

    Masks are updated after steps `begin`, `begin + frequency`, … up to `end`. The target rises from
    `initial_sparsity` at `begin` to `target_sparsity` at `ramp_end` and stays there; masks still
    refresh until `end`, then freeze.
    """

    target_sparsity: float = Field(ge=0, lt=1, description="share of zeros in every pruned weight at the end")
    initial_sparsity: float = Field(0.0, ge=0, lt=1)
    begin: int = Field(0, ge=0)
    ramp_end: int = Field(ge=1)
    end: int = Field(ge=1)
    frequency: int = Field(1000, ge=1)
    regrowth: bool = Field(True, description="False: a pruned weight stays zero from then on")
    include: list[str] = Field(
        default_factory=list, description="regular expressions over names; empty: all Linear of the encoder"
    )
    exclude: list[str] = Field(default_factory=list)

    @property
    def last_update(self) -> int:
        """Step after which masks are updated for the last time and freeze."""
        return self.begin + (self.end - self.begin) // self.frequency * self.frequency

    @model_validator(mode="after")
    def _schedule_fits(self) -> "PruningSection":
        if not self.begin < self.ramp_end <= self.end:
            raise ValueError(f"need begin < ramp_end <= end, got {self.begin}, {self.ramp_end}, {self.end}")
        if self.initial_sparsity > self.target_sparsity:
            raise ValueError("initial_sparsity must not exceed target_sparsity")
        if self.last_update < self.ramp_end:
            raise ValueError(
                f"the last mask update is after step {self.last_update}, before the ramp ends at "
                f"{self.ramp_end}: the target would never be reached; raise end or change frequency"
            )
        return self


class DistillationSection(Section):
    """Knowledge distillation inside the training step (Hinton et al. 2015; 0.5/0.5 and T = 2 in the paper).

    loss = mlm_weight x MLM (+ NSP) + kd_weight x T^2 KL(teacher/T || student/T), the latter averaged
    over all non-padding positions.
    """

    teacher: ModelSource = Field(
        description="Hugging Face name or folder: a release of the teacher preparation"
    )
    mlm_weight: float = Field(0.5, ge=0)
    kd_weight: float = Field(0.5, gt=0)
    temperature: float = Field(2.0, gt=0)
    placement: Literal["replicated", "sharded"] = Field(
        "replicated", description="a copy on every rank, or one copy sharded over the ranks (ZeRO-3)"
    )
