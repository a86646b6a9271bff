"""The same run on 1 to 1,024 ranks: how fast, and what limits it."""

from dataclasses import dataclass

from sparse_pretrain.costs.hardware import Device, Link
from sparse_pretrain.costs.job import Job
from sparse_pretrain.costs.predict import Prediction
from sparse_pretrain.costs.search import search
from sparse_pretrain.costs.time import Layout
from sparse_pretrain.errors import UserError

MOST = 1024
EXHAUSTED, TOO_SMALL = "rows per GPU exhausted", "memory"


@dataclass(frozen=True)
class Point:
    """One number of ranks.

    Attributes:
        ranks: that are paid for.
        working: of them, that have a row to work on.
        best: the best choice; None where nothing fits.
        limit: what takes the largest part of the step; or that rows or memory are at an end.
        efficiency: tokens a second and rank, over those of the smallest number of ranks that fits.
    """

    ranks: int
    working: int
    best: Prediction | None
    limit: str
    efficiency: float


def scaling(job: Job, device: Device, per_node: int, between: Link, most: int = MOST) -> list[Point]:
    """Return the points for 1, 2, 4, … ranks with the recipe's global batch.

    Beyond one rank a row, further ranks have nothing to do: the throughput stays, the price grows.
    """
    points: list[Point] = []
    first = 0.0
    ranks = 1
    while ranks <= most:
        working = min(ranks, job.recipe.batch.global_size)
        try:
            best = search(job, device, Layout(working, min(per_node, working), between)).best
        except UserError:
            points.append(Point(ranks, working, None, TOO_SMALL, 0.0))
        else:
            each = best.tokens_per_s / ranks
            first = first or each
            limit = EXHAUSTED if working < ranks else best.limit
            points.append(Point(ranks, working, best, limit, each / first))
        ranks *= 2
    return points
