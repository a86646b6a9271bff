"""All checks on ranks that have met: in the doctor's own ranks, or in those of a training before step 0."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from launcher.doctor.compare import LEAST_FREE, compare
from launcher.doctor.facts import RankFacts, collect
from launcher.doctor.findings import Report, sorted_findings
from launcher.doctor.network import measure_all_reduce, measure_pairs, pairs_to_measure, slow_pairs
from launcher.doctor.shared_folder import try_folder
from sparse_pretrain.training.world import World

CHECKS = ("versions", "code", "paths", "run folder", "space", "clock", "gpu")


@dataclass(frozen=True)
class Wanted:
    """What to check.

    Attributes:
        run_folder: of the run; files are written and removed in it.
        paths: that every rank must be able to read.
        speed: measure cores, memory and network too: a few seconds, and the machines must be idle.
        least_free: bytes that should be free in the run folder.
        seen_seconds: how long a rank's file may take to be seen by the others.
        gpus_in_use: the ranks themselves hold GPU memory: not a finding.
    """

    run_folder: Path
    paths: Sequence[Path] = ()
    speed: bool = True
    least_free: int = LEAST_FREE
    seen_seconds: float = 15.0
    gpus_in_use: bool = False


def check_world(world: World, wanted: Wanted) -> Report:
    """Check everything that ranks can find out together; the same report on every rank (collective).

    With `speed=False` and `gpus_in_use=True` it is light enough to run before the first step of a training.
    """
    facts = collect(world.rank, world.local_rank, wanted.paths, wanted.run_folder, wanted.speed)
    problem, unseen = try_folder(world, wanted.run_folder, wanted.seen_seconds)
    # All leave the barrier within a network delay: clocks can be compared.
    world.barrier()
    facts = replace(facts, write_problem=problem, unseen=unseen, clock=time.time())
    everyone: list[RankFacts] = world.gather(facts)
    hosts = [one.host for one in everyone]
    findings = compare(everyone, wanted.run_folder, wanted.least_free, wanted.gpus_in_use)
    numbers: dict[str, float] = {}
    if wanted.speed and world.size > 1:
        numbers = world.broadcast(measure_all_reduce(world))
        findings += slow_pairs(measure_pairs(world, pairs_to_measure(hosts)), hosts)
    checks = (*CHECKS, "speed", "network") if wanted.speed else CHECKS
    return Report(sorted_findings(findings), tuple(rows(everyone)), numbers, checks)


def rows(everyone: Sequence[RankFacts]) -> list[dict[str, object]]:
    """Return the facts for tables and JSON: clocks as differences from the median."""
    middle = median([one.clock for one in everyone])
    found = []
    for one in everyone:
        row = asdict(one)
        row["clock_skew"] = round(row.pop("clock") - middle, 3)
        found.append(row)
    return found
