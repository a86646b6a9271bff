"""A small disk that can be filled: a tmpfs, in a mount namespace of our own so that it ends with us."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Says that we are in a namespace of our own; empty: there is none to be had.
INSIDE = "CHAOS_OWN_MOUNTS"
# As root; as an ordinary user, where the kernel allows it.
WAYS = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


def with_own_mounts(command: Sequence[str]) -> None:
    """Replace this process by `command` in a mount namespace of its own; return when it is in one already.

    Where the kernel gives us none, `INSIDE` is set and empty, and this returns, too.
    """
    if INSIDE in os.environ:
        return
    way = next((way for way in WAYS if can_mount(way)), None)
    os.environ[INSIDE] = "yes" if way else ""
    if way is not None:
        sys.stdout.flush()
        os.execvp(way[0], [*way, *command])


def can_mount(way: Sequence[str]) -> bool:
    """Try out whether a namespace made in this way lets us mount a disk."""
    if shutil.which(way[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        attempt = [*way, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        return subprocess.run(attempt, capture_output=True, timeout=30, check=False).returncode == 0


def have_own_mounts() -> bool:
    """Say whether `small_disk` works."""
    return bool(os.environ.get(INSIDE))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Have what is in `folder` on a disk of its own of `size` bytes; afterwards where it was, changes and all."""
    folder.mkdir(exist_ok=True)
    real = folder.with_name(f"{folder.name}.real")
    folder.rename(real)
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    shutil.copytree(real, folder, dirs_exist_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(real)
        shutil.copytree(folder, real)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
        real.rename(folder)
