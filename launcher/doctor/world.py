"""All checks on the doctor's ranks that have met: those of every training's start, and speed and network."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

from launcher.doctor.network import measure_all_reduce, measure_pairs, pairs_to_measure, slow_network
from launcher.doctor.report import Report
from launcher.doctor.speed import Speed, measure_speed, slow_ranks
from sparse_pretrain.preflight.check import CHECKS, Wanted, check_ranks
from sparse_pretrain.preflight.facts import RankFacts
from sparse_pretrain.preflight.findings import sorted_findings
from sparse_pretrain.training.world import World


def check_world(world: World, wanted: Wanted) -> Report:
    """Check everything that ranks can find out together; the same report on every rank (collective).

    Takes a few seconds; the machines should be idle.
    """
    everyone, findings = check_ranks(world, wanted)
    hosts = [one.host for one in everyone]
    speeds: list[Speed] = world.gather(measure_speed(world.rank, hosts[world.rank]))
    findings += slow_ranks(speeds)
    numbers: dict[str, float] = {}
    if world.size > 1:
        numbers = world.broadcast(measure_all_reduce(world))
        findings += slow_network(measure_pairs(world, pairs_to_measure(hosts)), hosts)
    return Report(
        sorted_findings(findings), tuple(rows(everyone, speeds)), numbers, (*CHECKS, "speed", "network")
    )


def rows(everyone: Sequence[RankFacts], speeds: Sequence[Speed]) -> list[dict[str, object]]:
    """Return what is known of the ranks for tables and JSON: clocks as differences from the median."""
    middle = median([one.clock for one in everyone])
    found = []
    for one, speed in zip(everyone, speeds, strict=True):
        row = asdict(one) | asdict(speed)
        row["clock_skew"] = round(row.pop("clock") - middle, 3)
        found.append(row)
    return found
