"""What can happen to a run: each a small function."""

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from sparse_pretrain.checkpoint.integrity import FileFacts, read_manifest
from sparse_pretrain.checkpoint.layout import MANIFEST, replaced_folder, staging_folder
from tests.chaos.watch import Start


def kill_one_rank(start: Start, generator: random.Random) -> str:
    """Kill -9 one random rank; the launcher has to end the rest."""
    ranks = start.ranks()
    if not ranks:
        return kill_everything(start, generator)
    victim = generator.choice(ranks)
    kill(victim.pid)
    return f"killed one of {len(ranks)} ranks"


def kill_everything(start: Start, generator: random.Random) -> str:
    """Kill -9 the launcher and all ranks, in random order."""
    pids = [start.launcher.pid, *(rank.pid for rank in start.ranks())]
    generator.shuffle(pids)
    for pid in pids:
        kill(pid)
    return f"killed all {len(pids) - 1} ranks and the launcher"


def kill(pid: int) -> None:
    """Kill -9 a process that may be gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def truncate(path: Path, generator: random.Random) -> None:
    """Cut a file at a random place."""
    os.truncate(path, generator.randrange(path.stat().st_size))


def flip_one_bit(path: Path, generator: random.Random) -> None:
    """Change one random bit of a file."""
    place, bit = generator.randrange(path.stat().st_size), generator.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ (1 << bit)]))


def delete(path: Path, generator: random.Random) -> None:
    """Delete a file."""
    path.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncate": truncate,
    "flip": flip_one_bit,
    "delete": delete,
}


def damage(checkpoint: Path, how: str, generator: random.Random) -> tuple[str, bool]:
    """Damage one random file of a checkpoint.

    Returns:
        The file's name in there, and whether the checkpoint can be used no more: it still can when what the
        manifest says of the files is the same (a cut that only took its last line end).
    """
    listed = files_listed(checkpoint)
    victim = generator.choice([path for path in sorted(checkpoint.rglob("*")) if path.is_file()])
    DAMAGES[how](victim, generator)
    unusable = victim.name != MANIFEST or files_listed(checkpoint) != listed
    return victim.relative_to(checkpoint).as_posix(), unusable


def files_listed(checkpoint: Path) -> Mapping[str, FileFacts] | None:
    """Return what a checkpoint's manifest says of its files; None when it says nothing."""
    try:
        return read_manifest(checkpoint).files
    except ValueError:
        return None


def leave_partial(checkpoint: Path, generator: random.Random) -> None:
    """Leave a half-written save of a later step, as a dead start does: some files, one of them cut."""
    folder = staging_folder(checkpoint.parent, int(checkpoint.name.split("-")[1]) + 7, 0)
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    damage(folder, "truncate", generator)
    damage(folder, "delete", generator)


def leave_replaced(checkpoint: Path) -> None:
    """Leave a checkpoint under the name that it has for the moment in which another one takes its place."""
    shutil.rmtree(replaced_folder(checkpoint), ignore_errors=True)
    checkpoint.rename(replaced_folder(checkpoint))


def leave_both(checkpoint: Path) -> None:
    """Leave a replaced checkpoint that was not deleted, beside the one that replaced it."""
    shutil.copytree(checkpoint, replaced_folder(checkpoint), dirs_exist_ok=True)


def fill_disk(folder: Path, leave: int) -> Path:
    """Fill the disk that `folder` lies on but for `leave` bytes; return the file that does it."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        free = shutil.disk_usage(folder).free - leave
        while free > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, file.tell() + free)
                break
            except OSError:
                # Somebody else took some in between.
                free = min(free - 4096, shutil.disk_usage(folder).free - leave)
    return filler


def limit_files(start: Start, size: int) -> None:
    """Make every file end at `size` bytes (EFBIG): a full disk for those who cannot mount one."""
    for rank in start.ranks():
        try:
            hard = resource.prlimit(rank.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (size, hard))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
