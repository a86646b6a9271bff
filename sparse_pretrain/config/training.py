"""Recipe sections that say how it is trained: batch, optimizer, learning rate, engine, checkpoints."""

from typing import Literal

from pydantic import Field, model_validator

from sparse_pretrain.config.base import Section, UserPath


class BatchSection(Section):
    """Samples per optimizer step over all ranks, and per forward pass on one rank.

    Gradient accumulation follows: global_size / (micro_size x ranks), rounded up. Any number of ranks up to
    global_size will do: where it does not divide evenly, some micro-batches have fewer rows than micro_size.
    """

    global_size: int = Field(256, ge=1)
    micro_size: int = Field(32, ge=1)


class OptimizerSection(Section):
    """AdamW with decoupled weight decay (biases and LayerNorm weights are not decayed)."""

    learning_rate: float = Field(5e-5, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0, description="maximum global gradient norm; 0: no clipping")


class LearningRateSection(Section):
    """Shape of the learning rate over the run; `rewinding` follows the pruning schedule."""

    kind: Literal["linear", "constant", "rewinding", "cyclic"] = "linear"
    warmup: float = Field(0.01, ge=0, lt=1, description="share of all steps spent warming up")
    cycle_steps: int | None = Field(
        None, ge=2, description="kind=cyclic: steps from one peak to the next, counted from step 0"
    )
    final_factor: float = Field(
        0.0, ge=0, lt=1, description="kind=cyclic: where a cycle falls to, as a factor of the peak"
    )

    @model_validator(mode="after")
    def _cycle_fits(self) -> "LearningRateSection":
        if self.kind == "cyclic" and self.cycle_steps is None:
            raise ValueError("kind = cyclic needs cycle_steps, the steps from one peak to the next")
        if self.kind != "cyclic" and (self.cycle_steps is not None or self.final_factor):
            raise ValueError(f"cycle_steps and final_factor need kind = cyclic, not {self.kind}")
        return self


class EngineSection(Section):
    """The DeepSpeed engine."""

    stage: Literal[1, 2, 3] = Field(2, description="ZeRO stage")
    config: UserPath | None = Field(
        None, description="own DeepSpeed JSON; none: the shipped one for stage and precision"
    )
    compile: bool = Field(
        False,
        description="run the encoders' layers through torch.compile (ZeRO 1 and 2; needs a C++ compiler): a minute "
        "at every start, then fewer passes over a GPU's memory. On CPUs our own kernels are faster",
    )

    @model_validator(mode="after")
    def _layers_are_whole(self) -> "EngineSection":
        if self.compile and self.stage == 3:
            raise ValueError(
                "compile = true needs stage 1 or 2: at stage 3 a layer's weights are gathered piece by piece"
            )
        return self


class KeepSection(Section):
    """Which checkpoints stay."""

    last: int = Field(2, ge=1, description="newest ones; older ones are deleted after a new one is complete")
    every: int | None = Field(None, ge=1, description="keep those at multiples of so many steps for ever")


class CheckpointSection(Section):
    """When to save and what to keep."""

    every: int = Field(1000, ge=1, description="steps between checkpoints; one is always saved at the end")
    keep: KeepSection = KeepSection()
    resume: bool = Field(True, description="continue from the newest whole checkpoint in the run folder")
    asynchronous: bool = Field(
        True, description="write while training goes on; takes host memory for a copy of each rank's shards"
    )
    local: UserPath | None = Field(
        None,
        description="folder on a fast disk of each machine: written first, then copied to the run folder; a save "
        "that is complete there only is finished by the next start on the same machines",
    )
    compression: Literal["none", "zeros"] = Field(
        "zeros", description="zeros: leave zeros out, exactly; what is pruned behind the freeze takes no room"
    )
    walltime_margin: float = Field(
        60.0,
        ge=0,
        description="seconds before the end of a SLURM allocation by which the run has saved and left",
    )


class GuardSection(Section):
    """When to give up. An update with a NaN or infinite gradient is skipped on all ranks, and counted."""

    skipped_in_a_row: int = Field(
        20, ge=1, description="stop after so many steps in a row without a usable update"
    )


class EvaluationSection(Section):
    """Masked-token loss and accuracy on held-out rows."""

    every: int = Field(1000, ge=1, description="steps between evaluations; one is always run at the end")
    rows: int = Field(1024, ge=1, description="rows of the validation split, the same ones every time")


class LoggingSection(Section):
    """What goes to `metrics.jsonl` and TensorBoard."""

    every: int = Field(10, ge=1, description="steps between rows of metrics")
    histograms_every: int = Field(1000, ge=0, description="steps between weight histograms; 0: none")
