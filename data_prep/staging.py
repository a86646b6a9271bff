"""A folder that appears whole or not at all."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_folder

LOCK = ".lock"


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder `.NAME.partial` beside `output`; rename it to `output` when the body succeeds.

    When the body raises, the folder is removed and `output` stays as it was. What a killed run left is
    removed at the next start. An `output` that is there already is replaced in the last instant.

    Raises:
        UserError: another process is preparing the same output, or the place cannot be written.
    """
    staging = output.with_name(f".{output.name}.partial")
    replaced = output.with_name(f".{output.name}.replaced")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / LOCK).open("w")
    except OSError as error:
        raise UserError(f"output = {output}: cannot be written: {error.strerror}") from None
    with lock:
        take(lock, staging, output)
        try:
            empty(staging)
            shutil.rmtree(replaced, ignore_errors=True)
            yield staging
            fsync_folder(staging)
            if output.exists():
                output.rename(replaced)
            staging.rename(output)
            fsync_folder(output.parent)
            # The lock goes last: whoever waits for its name must not find the folder free before.
            (output / LOCK).unlink()
            shutil.rmtree(replaced, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def take(lock: IO[str], staging: Path, output: Path) -> None:
    """Lock the staging folder for this process.

    Raises:
        UserError: another process holds it, or renamed it a moment ago.
    """
    busy = UserError(f"output = {output}: another process is preparing it")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    except OSError:
        return  # this file system has no locks
    if not (staging / LOCK).exists() or not os.path.samestat(
        os.fstat(lock.fileno()), (staging / LOCK).stat()
    ):
        raise busy


def empty(staging: Path) -> None:
    """Remove what a killed run left in the folder, but for the lock."""
    for path in staging.iterdir():
        if path.name == LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
