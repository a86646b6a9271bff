"""What ranks that have met find out together in a fraction of a second."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparse_pretrain.preflight.compare import LEAST_FREE, compare
from sparse_pretrain.preflight.facts import RankFacts, collect
from sparse_pretrain.preflight.findings import Finding
from sparse_pretrain.preflight.shared_folder import try_folder
from sparse_pretrain.training.provenance import git_commit
from sparse_pretrain.training.world import World

CHECKS = ("versions", "code", "paths", "run folder", "space", "clock", "gpu")


@dataclass(frozen=True)
class Wanted:
    """What to check.

    Attributes:
        run_folder: of the run; files are written and removed in it.
        paths: that every rank must be able to read.
        least_free: bytes that should be free in the run folder.
        seen_seconds: how long a rank's file may take to be seen by the others: NFS clients keep what they know
            of a folder for some seconds.
        gpus_in_use: the ranks themselves hold GPU memory: not a finding.
    """

    run_folder: Path
    paths: Sequence[Path] = ()
    least_free: int = LEAST_FREE
    seen_seconds: float = 15.0
    gpus_in_use: bool = False


def check_ranks(world: World, wanted: Wanted) -> tuple[list[RankFacts], list[Finding]]:
    """Return the facts of all ranks, and what is not as it should be: the same on every rank (collective)."""
    facts = collect(world.rank, world.local_rank, wanted.paths, wanted.run_folder)
    problem, unseen = try_folder(world, wanted.run_folder, wanted.seen_seconds)
    # All leave the barrier within a network delay: clocks can be compared.
    world.barrier()
    facts = replace(facts, write_problem=problem, unseen=unseen, clock=time.time())
    everyone: list[RankFacts] = world.gather(facts)
    if len({one.code for one in everyone}) > 1:
        # Only now: git looks at every file of a checkout, which takes a while on a network's disk.
        commits = world.gather(git_commit())
        everyone = [replace(one, commit=commit) for one, commit in zip(everyone, commits, strict=True)]
    return everyone, compare(everyone, wanted.run_folder, wanted.least_free, wanted.gpus_in_use)
