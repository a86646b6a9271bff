"""One rank of the doctor: `python -m launcher.doctor.rank OUT_JSON RUN_FOLDER [--path P]...`.

The same under `launch local`, torchrun and srun. The lowest rank that is there writes OUT_JSON, whatever happens:
a rendezvous that hangs is a finding too. Exit code 0: a run may start; 1: something is wrong.
"""

import argparse
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.doctor.arrival import (
    Arrival,
    ArrivalFile,
    meeting_name,
    missing_findings,
    planned_hosts,
    reaches,
)
from launcher.doctor.report import Report, render
from launcher.query import expand_nodes
from sparse_pretrain.files import write_json
from sparse_pretrain.preflight.findings import Finding, unwritable

if TYPE_CHECKING:
    from sparse_pretrain.training.world import World

POLL_SECONDS = 0.5
# What the checks may take once the ranks have met.
CHECK_SECONDS = 180.0
# NFS clients keep what they know of a folder for some seconds.
SEEN_SECONDS = 15.0
# Ranks give up at about the same time: the one that reports waits for the others' last words.
LAST_WORDS_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Who this rank is: its number, how many there are, its number on its machine."""

    rank: int
    size: int
    local_rank: int


class NotMetError(RuntimeError):
    """The ranks did not come together."""


def main() -> None:
    """Be one rank."""
    options = read_options()
    place = find_place()
    find_meeting(os.environ)
    arrival = ArrivalFile(options.run_folder, place.rank, options.meeting or meeting_name())
    arrival.note("arrived")
    # What C++ warns of with its whole stack is said by our findings in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    give_up = threading.Timer(
        options.timeout + CHECK_SECONDS, lambda: leave(options, place, arrival, "the checks did not end")
    )
    give_up.daemon = True
    give_up.start()
    try:
        report = meet_and_check(options, place, arrival)
    except NotMetError:
        leave(options, place, arrival, None)
    except Exception as error:
        leave(options, place, arrival, f"{type(error).__name__}: {' '.join(str(error).split())}")
    give_up.cancel()
    if place.rank == 0:
        shutil.rmtree(arrival.folder, ignore_errors=True)
        tell(options, report)
    sys.exit(0 if report.ok or options.exit_zero else 1)


def read_options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.doctor.rank", description="One rank of the doctor."
    )
    parser.add_argument("out", type=Path, help="where the report goes, as JSON")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument(
        "--path", type=Path, action="append", default=[], help="that every rank must be able to read"
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for the ranks to meet")
    parser.add_argument(
        "--seen-seconds", type=float, default=SEEN_SECONDS, help="for a file to be seen by other machines"
    )
    parser.add_argument(
        "--meeting", help="a name that the ranks of this start share; default: by the environment"
    )
    parser.add_argument("--exit-zero", action="store_true", help="exit code 0 whatever the report says")
    parser.add_argument("--quiet", action="store_true", help="print nothing, the report goes to OUT only")
    return parser.parse_args()


def find_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Return who this rank is, by torchrun's variables or SLURM's; without torch, which may not even load."""
    if "RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif "SLURM_PROCID" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return Place(0, 1, 0)
    rank, size, local_rank = (int(environment.get(name, "0")) for name in names)
    return Place(rank, size, local_rank)


def find_meeting(environment: MutableMapping[str, str]) -> None:
    """Set where the ranks meet, if nobody has: the step's first node and a port from the job's number."""
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST", ""))
    environment.setdefault("MASTER_ADDR", nodes[0] if nodes else "127.0.0.1")
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    # Below 32768, where Linux starts to hand ports out to anyone; not the port of the job's own training.
    environment.setdefault("MASTER_PORT", str(20000 + (int(job) + 7919 + 101 * int(step)) % 12000))


def meet_and_check(options: argparse.Namespace, place: Place, arrival: ArrivalFile) -> Report:
    """Join the others and check everything.

    Raises:
        NotMetError: the ranks did not come together in time.
        Exception: what libraries say.
    """
    world = meet(options.timeout, place, arrival)
    from launcher.doctor.world import check_world
    from sparse_pretrain.preflight.check import Wanted

    wanted = Wanted(options.run_folder, options.path, seen_seconds=options.seen_seconds)
    report = check_world(world, wanted)
    arrival.note("done")
    # Rank 0 removes these files, and holds the store that the others may still need.
    world.barrier()
    return report


def meet(seconds: float, place: Place, arrival: ArrivalFile) -> "World":
    """Join the process group, on GPUs where there are some.

    Raises:
        NotMetError: not everybody came in time.
    """
    import torch
    import torch.distributed as dist

    from sparse_pretrain.training.world import World

    deadline = time.monotonic() + seconds
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    arrival.note("joining", reaches_meeting=place.rank == 0 or None)
    while place.rank != 0 and not reaches(address, port):
        if time.monotonic() > deadline:
            arrival.note("joining", reaches_meeting=False)
            raise NotMetError
        time.sleep(POLL_SECONDS)
    arrival.note("joining", reaches_meeting=True)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            # Objects go by gloo, what is measured by the network that training will use.
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=max(1.0, deadline - time.monotonic())),
        )
    except dist.DistError:
        raise NotMetError from None
    arrival.note("joined", reaches_meeting=True)
    return World(place.rank, place.size, place.local_rank, device)


def leave(options: argparse.Namespace, place: Place, arrival: ArrivalFile, problem: str | None) -> None:
    """End this rank, which cannot go on; the lowest one that has given up reports. Does not return."""
    arrival.give_up(problem)
    if problem is not None:
        print(f"rank {place.rank} on {platform.node()}: {problem}", file=sys.stderr, flush=True)
    time.sleep(LAST_WORDS_SECONDS)
    others = arrival.others()
    # One that is still on its way may never get so far; if it does, it knows more and its report replaces ours.
    if place.rank == min((other.rank for other in others if other.left), default=place.rank):
        tell(options, failed_report(others, place, arrival, options.timeout))
    sys.stdout.flush()
    # A library's threads may hang: nothing of them is waited for.
    os._exit(0 if options.exit_zero else 1)


def failed_report(others: list[Arrival], place: Place, arrival: ArrivalFile, seconds: float) -> Report:
    """Return what is known when the ranks could not check together."""
    findings: list[Finding] = []
    if arrival.problem is not None:
        findings.append(unwritable(arrival.folder, arrival.problem, place.rank, platform.node()))
    findings += missing_findings(others, place.size, seconds, planned_hosts())
    return Report(tuple(findings), checks=("arrival",))


def tell(options: argparse.Namespace, report: Report) -> None:
    """Write and print the report."""
    try:
        write_json(options.out, report.to_json())
    except OSError as error:
        print(f"{options.out}: {error.strerror}", file=sys.stderr)
    if not options.quiet:
        print("\n".join(render(report)), flush=True)


if __name__ == "__main__":
    main()
