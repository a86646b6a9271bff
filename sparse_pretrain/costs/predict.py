"""What one configuration of a job costs: memory, step time, tokens a second, MFU, GPU-hours, checkpoints."""

from dataclasses import asdict, dataclass
from typing import Any

from sparse_pretrain.costs import counts
from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.costs.job import Job
from sparse_pretrain.costs.memory import memory
from sparse_pretrain.costs.time import Layout, StepTime, step_time
from sparse_pretrain.data.loader import Slice, ceil_div

HOUR = 3600.0
# On the disk: masters and two moments in fp32, a bit for every mask.
CHECKPOINT_BYTES_PER_PARAMETER = 12


@dataclass(frozen=True)
class Choice:
    """What may be chosen for a job: ZeRO stage and rows of a micro-batch; accumulation follows."""

    stage: int
    micro_size: int


@dataclass(frozen=True)
class Prediction:
    """What a choice costs on a layout.

    Attributes:
        choice: stage and micro-batch.
        ranks: in all.
        accumulation: micro-batches a step.
        rows: of the largest micro-batch.
        memory: bytes on a rank by purpose, `total` among them.
        fits: in the device.
        time: of a step.
        tokens_per_s: slots of all ranks.
        mfu: matrix FLOPs that the step must do over its time and the peak of all ranks.
        gpu_hours: of the whole run.
        checkpoint_bytes: on the disk.
        checkpoint_seconds: to write one, all ranks together.
    """

    choice: Choice
    ranks: int
    accumulation: int
    rows: int
    memory: dict[str, float]
    fits: bool
    time: StepTime
    tokens_per_s: float
    mfu: float
    gpu_hours: float
    checkpoint_bytes: float
    checkpoint_seconds: float

    @property
    def limit(self) -> str:
        """The resource that takes the largest part of a step."""
        return max(self.time.limits, key=lambda name: self.time.limits[name])

    def numbers(self) -> dict[str, Any]:
        """Return everything, JSON-able."""
        values = asdict(self)
        return {**values, "step_seconds": self.time.seconds, "limit": self.limit}


def predict(job: Job, choice: Choice, device: Device, layout: Layout) -> Prediction:
    """Return what a choice costs.

    Raises:
        UserError: fewer rows than ranks.
    """
    batch, shape, ranks = job.recipe.batch, job.shape, layout.ranks
    part = Slice(batch.global_size, choice.micro_size, 0, ranks)
    passes = part.accumulation
    # The slowest rank has the largest share; its passes differ by a row at most.
    share = ceil_div(batch.global_size, ranks)
    rows = part.largest_pass
    micro = job.micro_batch(rows)
    works = counts.micro_batch(shape, micro, job.width, job.teachers)
    if choice.stage == 3 and ranks > 1:
        works = [*works, *counts.sharded_modules(shape)]
    by_weight = ("gradients", "loop")
    scaled = [work if work.term in by_weight else work.times(share / (rows * passes)) for work in works]
    once = counts.optimizer(shape, ranks, job.width) + counts.masks(shape, ranks, job.width, choice.stage)
    time = step_time(
        scaled,
        passes,
        once,
        counts.mask_update(shape, ranks),
        job.update_every,
        device,
        job.precision,
        layout,
        choice.stage,
        shape.parameters * job.width,
    )
    sizes = memory(
        job.recipe, shape, micro, device, ranks, job.width, choice.stage, len(job.teachers), passes
    )
    flops = counts.model_flops(works) / rows * batch.global_size
    seconds = time.seconds
    checkpoint = CHECKPOINT_BYTES_PER_PARAMETER * shape.parameters + shape.prunable / 8
    return Prediction(
        choice=choice,
        ranks=ranks,
        accumulation=passes,
        rows=rows,
        memory=sizes,
        fits=sizes["total"] <= device.memory,
        time=time,
        tokens_per_s=batch.global_size * job.length / seconds,
        mfu=flops / seconds / ranks / device.flops[job.precision],
        gpu_hours=job.recipe.steps * seconds * ranks / HOUR,
        checkpoint_bytes=checkpoint,
        checkpoint_seconds=checkpoint / device.write,
    )
