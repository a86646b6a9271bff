"""A folder that appears whole or not at all, and one that goes in an instant."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_folder


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold `output` for this process, by a lock file `.NAME.lock` beside it that is gone afterwards.

    The system frees the lock of a killed process; its file stays and means nothing.

    Raises:
        UserError: another process is preparing the same output, or the place cannot be written.
    """
    busy = UserError(f"output = {output}: another process is preparing it")
    path = output.with_name(f".{output.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise UserError(f"output = {output}: cannot be written: {error.strerror}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass  # this file system has no locks
        # Whoever held it before may have removed the name between our opening and our locking.
        if not path.exists() or not os.path.samestat(os.fstat(handle.fileno()), path.stat()):
            raise busy
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder `.NAME.partial` beside `output`; rename it to `output` when the body succeeds.

    When the body raises, the folder is removed and `output` stays as it was. What a killed run left is
    removed at the next start. An `output` that is there already is replaced in the last instant. Nothing of
    ours is in the folder, so that it is whole from the instant of its new name on.

    Raises:
        UserError: the place cannot be written.
    """
    staging = output.with_name(f".{output.name}.partial")
    replaced = output.with_name(f".{output.name}.replaced")
    for left in (staging, replaced):
        shutil.rmtree(left, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output = {output}: cannot be written: {error.strerror}") from None
    try:
        yield staging
        fsync_folder(staging)
        if output.exists():
            output.rename(replaced)
        staging.rename(output)
        fsync_folder(output.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def discard(folder: Path) -> None:
    """Remove a folder, if it is there, all at once: whoever is killed meanwhile leaves no half of it.

    A half could hold the markers of finished tasks without what the tasks have made.
    """
    gone = discarded(folder)
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def discarded(folder: Path) -> Path:
    """Return the name under which a folder is removed."""
    return folder.with_name(f"{folder.name}.discarded")
