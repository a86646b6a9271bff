"""Small files by which ranks can be missed: who is here, how far it came, and why not further.

They are written before any library is loaded and any connection made, so they still speak when the rendezvous
hangs.
"""

import hashlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.query import expand_nodes
from sparse_pretrain.preflight.findings import Finding
from sparse_pretrain.telemetry.launch_identity import launch_name

FOLDER = "doctor"
CONNECT_SECONDS = 3.0
ABSENT = "did not arrive"
TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Arrival:
    """How far one rank came.

    Attributes:
        rank: its number.
        host: its machine.
        stage: arrived, joining (wants to meet the others), joined, done, failed.
        time: of this stage, seconds since 1970.
        problem: why it failed; None while it has not.
        reaches_meeting: whether it could open a connection to the meeting point; None before it tried.
        meeting: address and port at which it wants to meet the others.
        left: it has given up.
    """

    rank: int
    host: str
    stage: str
    time: float
    problem: str | None = None
    reaches_meeting: bool | None = None
    meeting: str = ""
    left: bool = False


class ArrivalFile:
    """This rank's file among those of one meeting.

    Attributes:
        problem: why it could not be written; None when it was.
    """

    def __init__(self, run_folder: Path, rank: int, meeting: str) -> None:
        """Prepare the file of `rank` among those of `meeting`; nothing is written yet."""
        self.folder = meeting_folder(run_folder, meeting)
        self.problem: str | None = None
        self._rank = rank
        self._last: Arrival | None = None

    def note(self, stage: str, problem: str | None = None, reaches_meeting: bool | None = None) -> None:
        """Write how far this rank came; a folder that refuses is noted in `problem`."""
        self._write(
            Arrival(
                self._rank,
                platform.node(),
                stage,
                time.time(),
                problem,
                reaches_meeting,
                find_meeting_point(),
            )
        )

    def give_up(self, problem: str | None = None) -> None:
        """Write that this rank goes no further, and why if that is its own fault."""
        if problem is not None:
            self.note("failed", problem)
        if self._last is not None:
            self._write(replace(self._last, left=True))

    def _write(self, arrival: Arrival) -> None:
        self._last = arrival
        path = self.folder / f"rank-{self._rank}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(arrival)), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            self.problem = f"{error.strerror} ({error.filename})"

    def others(self) -> list[Arrival]:
        """Return what all ranks have written so far, by rank."""
        return read_arrivals(self.folder)


def meeting_folder(run_folder: Path, meeting: str) -> Path:
    """Return the folder in which the ranks of one meeting write: none of another meeting finds it."""
    return run_folder / FOLDER / f"meeting-{hashlib.sha256(meeting.encode()).hexdigest()[:12]}"


def meeting_name(environment: Mapping[str, str] = os.environ) -> str:
    """Return what the ranks of one start share, by their environment; two steps of a job are two starts."""
    return f"{launch_name(environment)}, step {environment.get('SLURM_STEP_ID', 'none')}"


def find_meeting_point(environment: Mapping[str, str] = os.environ) -> str:
    """Return address and port of the rendezvous, for people."""
    return f"{environment.get('MASTER_ADDR', '?')}:{environment.get('MASTER_PORT', '?')}"


def read_arrivals(folder: Path) -> list[Arrival]:
    """Return the arrivals in a meeting's folder, by rank; half-written files do not exist."""
    found = []
    for path in folder.glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(Arrival(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda arrival: arrival.rank)


def reaches(address: str, port: int, seconds: float = CONNECT_SECONDS) -> bool:
    """Say whether somebody answers at an address and port."""
    try:
        with socket.create_connection((address, port), timeout=seconds):
            return True
    except OSError:
        return False


def planned_hosts(environment: Mapping[str, str] = os.environ) -> dict[int, str]:
    """Return on which node srun started each rank; empty where it did not, or dealt them out in another order."""
    if "RANK" in environment or not environment.get("SLURM_DISTRIBUTION", "block").startswith("block"):
        return {}
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST", ""))
    # 2(x3),1: two tasks on each of three nodes, one on the next.
    counts: list[int] = []
    for count, repeated in TASKS.findall(environment.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeated or 1)
    if len(counts) != len(nodes):
        return {}
    return dict(enumerate(node for node, count in zip(nodes, counts, strict=True) for _ in range(count)))


def missing_findings(
    arrivals: Sequence[Arrival], size: int, seconds: float, planned: Mapping[int, str] | None = None
) -> list[Finding]:
    """Return why a rendezvous of `size` ranks did not come about.

    Args:
        arrivals: what ranks wrote.
        size: how many should have come.
        seconds: that was waited.
        planned: where those that did not come should be, as far as that is known.
    """
    present = {arrival.rank: arrival for arrival in arrivals}
    findings = [
        Finding(
            "arrival",
            "wrong",
            f"{ABSENT} in {seconds:.0f} s",
            "look at its node and at the job's output; it may be very slow, or unable to write to the run folder",
            rank=rank,
            host=None if planned is None else planned.get(rank),
        )
        for rank in range(size)
        if rank not in present
    ]
    for arrival in arrivals:
        reason = why_not_joined(arrival, present.get(0))
        if reason is not None:
            findings.append(Finding("arrival", "wrong", *reason, arrival.rank, arrival.host))
    if not findings:
        hosts = ", ".join(sorted({arrival.host for arrival in arrivals}))
        findings.append(
            Finding(
                "arrival",
                "wrong",
                f"all {size} ranks arrived and reach the meeting point, but could not connect to each other",
                f"set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to the network that joins {hosts}",
            )
        )
    return findings


def why_not_joined(arrival: Arrival, first: Arrival | None) -> tuple[str, str] | None:
    """Return what keeps a rank from joining, and what to do; None when it is not this rank's fault."""
    if arrival.stage == "failed":
        return arrival.problem or "failed", "see its log"
    if arrival.stage == "arrived":
        return (
            "arrived, but has not loaded its libraries",
            "is its environment on a slow file system, or the machine itself slow?",
        )
    if first is None:
        # Nobody can reach a rank 0 that is not there.
        return None
    if arrival.meeting != first.meeting:
        return (
            f"wants to meet at {arrival.meeting}, rank 0 waits at {first.meeting}",
            "give all ranks the same MASTER_ADDR and MASTER_PORT",
        )
    if arrival.reaches_meeting is False and first.stage not in ("arrived", "failed"):
        return (
            f"cannot connect to {arrival.meeting}, where rank 0 waits",
            "check that the name resolves there, MASTER_ADDR and firewall, or take another port",
        )
    return None
