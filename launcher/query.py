"""What SLURM says of jobs and nodes, by squeue and scontrol; no accounting database is needed.

Not by `squeue --json`: version 22.05 ignores its filters and answers for the whole cluster, says exit code 0 when it
has not reached the controller, and newer versions give the same keys other types. The formats below have been the
same for ten years.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

SECONDS = 20.0
# The name comes last, for it may hold anything.
SQUEUE_FORMAT = "%i|%T|%r|%N|%V|%S|%e|%j"
UNKNOWN = "UNKNOWN"
# States in which SLURM still has something to do for a job.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING"})
RUNNING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})


class SlurmError(RuntimeError):
    """SLURM is not here, or did not answer: one line that says what."""


class NoSlurmError(SlurmError):
    """SLURM is not here."""


@dataclass(frozen=True)
class Job:
    """A job, as far as SLURM says.

    Attributes:
        id: its number.
        state: as squeue spells it (`RUNNING`); `UNKNOWN` when SLURM does not know the job (any more).
        reason: why it waits or ended; None when SLURM gives none.
        nodes: that it has, expanded; empty while it waits.
        submitted, started, ends: seconds since 1970, None when unknown; a waiting job's start is an estimate.
        name: of the job.
        restarts: how often it was requeued; None where only squeue was asked.
        requeue: whether SLURM may start it again; None where only squeue was asked.
        output: the file of its output; None where only squeue was asked.
    """

    id: str
    state: str
    reason: str | None = None
    nodes: tuple[str, ...] = ()
    submitted: float | None = None
    started: float | None = None
    ends: float | None = None
    name: str = ""
    restarts: int | None = None
    requeue: bool | None = None
    output: str | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits to be started."""
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Whether it has nodes."""
        return self.state in RUNNING


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: as SLURM calls it.
        state: `IDLE`, `MIXED`, `DOWN*`, `IDLE+DRAIN` and so on.
        reason: what somebody, or SLURM, gave as the reason of a state; None without one.
    """

    name: str
    state: str
    reason: str | None = None

    @property
    def is_well(self) -> bool:
        """Whether jobs can run on it; `*` means that it does not answer."""
        flags = set(self.state.rstrip("*~#!%$@^-").split("+"))
        bad = {
            "DOWN",
            "DRAIN",
            "DRAINED",
            "DRAINING",
            "FAIL",
            "FAILING",
            "ERROR",
            "NOT_RESPONDING",
            "UNKNOWN",
        }
        return not (flags & bad) and "*" not in self.state


# --- asking -------------------------------------------------------------------------------------------


def ask(
    command: Sequence[str], seconds: float = SECONDS, environment: Mapping[str, str] | None = None
) -> str:
    """Run one of SLURM's commands and return what it prints.

    Args:
        command: program and arguments.
        seconds: after which it counts as not answered.
        environment: for another cluster than the usual one (`SLURM_CONF`).

    Raises:
        SlurmError: no such program, no answer in time, or an exit code other than 0.
    """
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=True,
            stdin=subprocess.DEVNULL,
            env=None if environment is None else dict(environment),
        )
    except FileNotFoundError:
        raise NoSlurmError(f"{command[0]}: no such program; is this a machine of the cluster?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer in {seconds:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise SlurmError(f"{command[0]}: {said}") from None
    return done.stdout


def find_jobs(ids: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, Job]:
    """Return jobs by their numbers, with one question; those that SLURM does not know are `UNKNOWN`.

    Raises:
        SlurmError: SLURM does not answer.
    """
    if not ids:
        return {}
    found: dict[str, Job] = {}
    try:
        listed = ask(
            [
                "squeue",
                "--noheader",
                "--states=all",
                f"--jobs={','.join(ids)}",
                f"--format={SQUEUE_FORMAT}",
            ],
            environment=times_as_iso(environment),
        )
        found = {job.id: job for job in parse_squeue(listed)}
    except SlurmError as error:
        # One number alone that it does not know is an error to squeue, several are not.
        if "Invalid job id" not in str(error):
            raise
    return {number: found.get(number, Job(number, UNKNOWN)) for number in ids}


def find_job(number: str, environment: Mapping[str, str] | None = None) -> Job:
    """Return everything about one job; `UNKNOWN` when SLURM does not know it (any more).

    Raises:
        SlurmError: SLURM does not answer.
    """
    try:
        shown = ask(["scontrol", "show", "job", "-o", number], environment=times_as_iso(environment))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return Job(number, UNKNOWN)
        raise
    return next((job for job in parse_jobs(shown) if job.id == number), Job(number, UNKNOWN))


def find_my_jobs(environment: Mapping[str, str] | None = None) -> list[Job]:
    """Return the jobs of this user that wait or run; each element of an array for itself, as `12_3`.

    Raises:
        SlurmError: SLURM does not answer.
    """
    listed = ask(
        # All states, chosen here: left to itself, it leaves suspended jobs out.
        ["squeue", "--noheader", "--me", "--array", "--states=all", f"--format={SQUEUE_FORMAT}"],
        environment=times_as_iso(environment),
    )
    return [job for job in parse_squeue(listed) if job.waits or job.runs]


def find_nodes(names: Sequence[str], environment: Mapping[str, str] | None = None) -> list[Node]:
    """Return nodes by their names.

    Raises:
        SlurmError: SLURM does not answer, or does not know one.
    """
    if not names:
        return []
    return parse_nodes(
        ask(["scontrol", "show", "nodes", "-o", ",".join(names)], environment=times_as_iso(environment))
    )


def times_as_iso(environment: Mapping[str, str] | None) -> dict[str, str]:
    """Return an environment (None: this process's) without the user's own taste in times."""
    base = os.environ if environment is None else environment
    return {**base, "SLURM_TIME_FORMAT": "standard"}


# --- understanding --------------------------------------------------------------------------------------


def parse_squeue(text: str) -> list[Job]:
    """Read what squeue prints with `SQUEUE_FORMAT`."""
    jobs = []
    for line in text.splitlines():
        cells = line.split("|", 7)
        if len(cells) < 8:
            continue
        number, state, reason, nodes, submitted, started, ends, name = cells
        jobs.append(
            Job(
                id=number,
                state=state,
                reason=said(reason),
                nodes=expand_nodes(nodes),
                submitted=moment(submitted),
                started=moment(started),
                ends=moment(ends),
                name=name,
            )
        )
    return jobs


def parse_jobs(text: str) -> list[Job]:
    """Read what `scontrol show job -o` prints: one job a line.

    Names, comments and paths may hold spaces and `=`; so each value is taken between two keys that have a fixed
    order, and nothing is taken from behind `Command=` but the output's path.
    """
    jobs = []
    for line in text.splitlines():
        head = re.match(r"JobId=(\d+)(?: ArrayJobId=\S+)?(?: ArrayTaskId=\S+)? JobName=(.*?) UserId=", line)
        if head is None:
            continue
        rest = line[head.end() :].split(" Command=", 1)
        facts = dict(re.findall(r"(?:^| )([A-Za-z:/]+)=(\S*)", rest[0]))
        output = re.search(r" StdOut=(.*?)(?: Power=| [A-Z]\w*=|\s*$)", rest[-1])
        jobs.append(
            Job(
                id=head.group(1),
                state=facts.get("JobState", UNKNOWN),
                reason=said(facts.get("Reason", "").replace("_", " ")),
                nodes=expand_nodes(facts.get("NodeList", "")),
                submitted=moment(facts.get("SubmitTime", "")),
                started=moment(facts.get("StartTime", "")),
                ends=moment(facts.get("EndTime", "")),
                name=head.group(2),
                restarts=int(facts["Restarts"]) if facts.get("Restarts", "").isdigit() else None,
                requeue={"0": False, "1": True}.get(facts.get("Requeue", "")),
                output=output.group(1) if output is not None else None,
            )
        )
    return jobs


def parse_nodes(text: str) -> list[Node]:
    """Read what `scontrol show nodes -o` prints: one node a line."""
    nodes = []
    for line in text.splitlines():
        name, state = re.match(r"NodeName=(\S+)", line), re.search(r" State=(\S+)", line)
        if name is None or state is None:
            continue
        # Last on the line, with who said so and when behind it; newer versions append a comment.
        reason = re.search(r" Reason=(.*?)(?: \[[^\[\]]*\])?(?: Comment=.*)?\s*$", line)
        nodes.append(Node(name.group(1), state.group(1), said(reason.group(1)) if reason else None))
    return nodes


def expand_nodes(text: str) -> tuple[str, ...]:
    """Return the nodes of SLURM's short form: `a[1-2,05-06],b` is a1, a2, a05, a06, b."""
    if said(text) is None:
        return ()
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        opened = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if opened is None:
            names.append(part)
            continue
        before, inside, after = opened.groups()
        for item in inside.split(","):
            first, _, last = item.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            middle = [f"{number:0{len(first)}d}" for number in numbers]
            names += [before + number + end for number in middle for end in expand_nodes(after) or ("",)]
    return tuple(names)


def moment(text: str) -> float | None:
    """Return a time of SLURM's as seconds since 1970; None for `N/A`, `Unknown` and the like."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def said(text: str) -> str | None:
    """Return a value, None for the words that SLURM has for nothing."""
    return None if text.strip() in ("", "None", "N/A", "(null)", "NONE") else text.strip()
