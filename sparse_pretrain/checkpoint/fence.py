"""Who may write a run's checkpoints: the newest start of the run, and nobody else.

When a cluster loses contact with a node and starts the job again elsewhere, the processes of the lost node
go on training. They must not replace what the new start writes. So every start writes its number and a
random token into `.owner.json`, and a commit looks, under a lock, whether the token is still its own.
"""

import fcntl
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json

OWNER = ".owner.json"
LOCK = ".lock"
# A requeued job may start while the processes of the one before are still ending.
ENDING_SECONDS = 5.0


class SupersededError(RuntimeError):
    """A newer start of the same run owns its checkpoints now; this one must not write any more."""


@dataclass(frozen=True)
class Claim:
    """One start of a run.

    Attributes:
        run: identity of the run; the same for all its starts.
        start: 1 for the first, one more each time.
        token: random; tells two starts apart that have the same number.
        host: machine of rank 0.
        process: its process id there.
        process_started: when that process was started, seconds since 1970 (a process id is used again).
    """

    run: str
    start: int
    token: str
    host: str
    process: int
    process_started: float


def read_owner(checkpoints: Path) -> Claim | None:
    """Return who owns a run's checkpoints, None when nobody does yet."""
    path = checkpoints / OWNER
    if not path.is_file():
        return None
    try:
        owner = Claim(**read_json(path))
    except (UserError, TypeError):
        # Whatever it was: the next claim replaces it.
        return None
    return owner if is_sound(owner) else None


def is_sound(owner: Claim) -> bool:
    """Say whether every field is what it should be; they were read from a file."""
    texts, numbers = (owner.run, owner.token, owner.host), (owner.start, owner.process)
    return (
        all(type(text) is str for text in texts)
        and all(type(number) is int and number > 0 for number in numbers)
        and type(owner.process_started) in (int, float)
    )


def claim(checkpoints: Path) -> Claim:
    """Make this process the owner of a run's checkpoints; called by rank 0 of every start.

    Raises:
        UserError: another process on this machine is training in the same folder.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    with locked(checkpoints):
        before = read_owner(checkpoints)
        refuse_second_writer(checkpoints)
        mine = Claim(
            run=before.run if before else secrets.token_hex(8),
            start=before.start + 1 if before else 1,
            token=secrets.token_hex(16),
            host=platform.node(),
            process=os.getpid(),
            process_started=psutil.Process().create_time(),
        )
        write_json(checkpoints / OWNER, asdict(mine))
        return mine


def refuse_second_writer(checkpoints: Path) -> None:
    """Refuse a folder whose owner is another living process of this machine, and does not end in a few seconds.

    Raises:
        UserError: naming the process.
    """
    owner = read_owner(checkpoints)
    if owner is None or owner.process == os.getpid():
        return
    deadline = time.monotonic() + ENDING_SECONDS
    while is_alive(owner):
        if time.monotonic() < deadline:
            time.sleep(0.1)
            continue
        raise UserError(
            f"{checkpoints.parent}: process {owner.process} on this machine is training in this folder; stop it, or "
            "choose another output"
        )


def is_alive(owner: Claim) -> bool:
    """Say whether a claim's process still runs; False as well when it is on another machine."""
    return runs_here(owner.host, owner.process, owner.process_started)


def runs_here(host: str, process: int, started: float) -> bool:
    """Say whether a process runs on this machine; one that only has the same number does not count.

    Args:
        host: the machine's name.
        process: its number there.
        started: when, seconds since 1970.
    """
    if host != platform.node():
        return False
    try:
        found = psutil.Process(process)
        same = abs(found.create_time() - started) < 1.0
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def check_owner(checkpoints: Path, mine: Claim) -> None:
    """Make sure that no newer start has taken over; call it under `locked`.

    Raises:
        SupersededError: one has.
    """
    owner = read_owner(checkpoints)
    if owner is None or owner.token != mine.token:
        by = f"start {owner.start} on {owner.host}" if owner else "someone who removed its owner file"
        raise SupersededError(
            f"{checkpoints}: taken over by {by}; this is start {mine.start} on {mine.host}, and it committed nothing"
        )


@contextmanager
def locked(checkpoints: Path) -> Iterator[None]:
    """Hold the folder's lock. Where the file system has none (some Lustre mounts), go on without.

    Then a commit that looks at the owner and renames leaves a gap of milliseconds between the two.
    """
    with (checkpoints / LOCK).open("w") as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
