"""One process at a time in torch's folder of compiled extensions, whatever killed processes left there.

DeepSpeed loads its CPU communication through `torch.utils.cpp_extension`, which marks a build by a file
named `lock` and deletes it afterwards. A rank that is killed in between (preemption, kill -9) leaves the file,
and every later start on that machine waits for it for ever. A lock of the kernel (`flock`) ends with its
process: whoever holds ours knows that a `lock` file it finds belongs to nobody.
"""

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# No extension that we load takes longer to compile (20 s; minutes on a machine with other work): an older lock
# has no owner any more. Deleting a living build's lock would be worse than waiting.
STALE_SECONDS = 600.0
POLL_SECONDS = 0.05


@contextlib.contextmanager
def extensions_alone(stale_after: float = STALE_SECONDS) -> Iterator[None]:
    """Hold torch's folder of extensions against our other processes; free of locks of dead ones at entry.

    In our own folder every lock file goes at once. A folder that the user chose (TORCH_EXTENSIONS_DIR) may
    be used by other programs as well: there a lock is waited for, and deleted when it is too old to be
    anybody's.

    Args:
        stale_after: seconds; neither the folder nor a lock file is waited for any longer.
    """
    folder = extensions_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".one-at-a-time").open("w") as guard:
        held = hold(guard, stale_after)
        for lock in folder.glob("*/lock"):
            if (held and folder == own_folder()) or outlasts(lock, stale_after):
                lock.unlink(missing_ok=True)
        yield


def hold(guard: IO[str], patience: float) -> bool:
    """Take the kernel's lock on an open file, which closing it or the end of this process gives back.

    Args:
        guard: open for writing.
        patience: seconds to wait for another process (one on another machine may never answer).

    Returns:
        False when another process kept it, or when this file system has no locks (Lustre without `flock`).
    """
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:
            return False
        else:
            return True


def outlasts(lock: Path, stale_after: float) -> bool:
    """Wait until a lock file is gone (False) or more than `stale_after` seconds old (True)."""
    while (age := age_of(lock)) is not None:
        if age > stale_after:
            return True
        time.sleep(POLL_SECONDS)
    return False


def extensions_folder() -> Path:
    """Return the folder in which torch builds extensions: the user's (TORCH_EXTENSIONS_DIR) or our own."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    return own_folder()


def own_folder() -> Path:
    """Return the folder that only we build extensions in; one for each Python environment.

    Builds of two environments differ in their include paths: in one folder each start of the one would
    compile again what the other has just made.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    return cache / f"sparse-pretrain-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]}"


def age_of(path: Path) -> float | None:
    """Return how many seconds ago a file was written; None when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
