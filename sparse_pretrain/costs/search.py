"""The best ZeRO stage and micro-batch among those that fit, and why not the next one."""

from dataclasses import dataclass

from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.costs.job import Job
from sparse_pretrain.costs.predict import Choice, Prediction, predict
from sparse_pretrain.costs.time import Layout
from sparse_pretrain.data.loader import ceil_div
from sparse_pretrain.errors import UserError

STAGES = (1, 2, 3)
GIB = 2**30


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the fastest that fits.
        runner_up: the next fastest that fits; None when nothing else does.
        why: in a few words, why it comes second.
        tried: every choice, the fastest first, with those that do not fit.
    """

    best: Prediction
    runner_up: Prediction | None
    why: str
    tried: tuple[Prediction, ...]


def micro_sizes(job: Job, ranks: int) -> list[int]:
    """Return the micro-batches worth a try: powers of two up to a rank's share, the share, and the recipe's."""
    share = ceil_div(job.recipe.batch.global_size, ranks)
    powers = [2**exponent for exponent in range(share.bit_length()) if 2**exponent <= share]
    return sorted({*powers, share, min(share, job.recipe.batch.micro_size)})


def search(job: Job, device: Device, layout: Layout) -> Found:
    """Try every stage and micro-batch.

    The fastest wins; of equals (within one per cent) the one that needs less memory.

    Raises:
        UserError: fewer rows than ranks, or nothing fits: how much the smallest lacks.
    """
    tried = sorted(
        (
            predict(job, Choice(stage, size), device, layout)
            for stage in STAGES
            for size in micro_sizes(job, layout.ranks)
        ),
        key=lambda one: one.time.seconds,
    )
    fitting = [one for one in tried if one.fits]
    if not fitting:
        least = min(tried, key=lambda one: one.memory["total"])
        raise UserError(
            f"nothing fits on {layout.ranks} x {device.name}: ZeRO {least.choice.stage} with micro-batches of "
            f"{least.rows} rows needs {least.memory['total'] / GIB:.1f} GiB a rank of {device.memory / GIB:.1f}; "
            "take more or larger GPUs, or a smaller model"
        )
    close = [one for one in fitting if one.time.seconds <= fitting[0].time.seconds * 1.01]
    best = min(close, key=lambda one: one.memory["total"])
    others = [one for one in fitting if one is not best]
    runner_up = others[0] if others else None
    return Found(best, runner_up, reason(best, runner_up), tuple(tried))


def reason(best: Prediction, second: Prediction | None) -> str:
    """Say what the runner-up loses by."""
    if second is None:
        return "nothing else fits"
    slower = second.time.seconds / best.time.seconds - 1
    if slower <= 0.01:
        more = (second.memory["total"] - best.memory["total"]) / GIB
        return f"as fast within 1 %, needs {more:.1f} GiB more a rank"
    differences = {
        name: second.time.terms.get(name, 0.0) - best.time.terms.get(name, 0.0)
        for name in {*best.time.terms, *second.time.terms}
    }
    worst = max(differences, key=lambda name: differences[name])
    return f"{slower:.1%} slower, most of it by {worst} (+{differences[worst] * 1e3:.1f} ms)"
