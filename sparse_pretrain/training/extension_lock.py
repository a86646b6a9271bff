"""Locks that killed processes left behind in torch's folder of compiled extensions.

DeepSpeed loads its CPU communication through `torch.utils.cpp_extension`, which marks a build by a file
named `lock` and deletes it afterwards. A rank that is killed in between (preemption, kill -9) leaves the file,
and every later start on that machine waits for it for ever.
"""

import fcntl
import hashlib
import os
import sys
import time
from pathlib import Path

# No extension that we load takes longer to compile (20 s; minutes on a machine with other work): an older lock
# has no owner any more. Deleting a living build's lock would be worse than waiting.
STALE_SECONDS = 600.0
POLL_SECONDS = 0.2


def clear_stale_locks(folder: Path | None = None, stale_after: float = STALE_SECONDS) -> None:
    """Wait until no extension is being built, and delete locks that are too old to be anybody's.

    Args:
        folder: of torch's extensions (default: where torch puts them).
        stale_after: seconds; the call takes no longer.
    """
    root = folder or extensions_folder()
    if not any(root.glob("*/lock")) and not any(root.glob("*/*/lock")):
        return
    with (root / ".stale-locks").open("w") as guard:
        # One process at a time: a second one must not delete the lock that the first has just made anew.
        fcntl.flock(guard, fcntl.LOCK_EX)
        for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
            while (age := age_of(lock)) is not None:
                if age > stale_after:
                    lock.unlink(missing_ok=True)
                    break
                time.sleep(POLL_SECONDS)


def extensions_folder() -> Path:
    """Return the folder in which torch builds extensions; one for each Python environment unless it is set.

    Builds of two environments differ in their include paths: in one folder each start of the one would
    compile again what the other has just made.
    """
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    return cache / f"sparse-pretrain-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]}"


def age_of(path: Path) -> float | None:
    """Return how many seconds ago a file was written; None when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None
