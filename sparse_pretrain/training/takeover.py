"""The start of a run becomes the one that may write its checkpoints; and what a disk says, said for people."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sparse_pretrain.checkpoint.fence import Claim, claim
from sparse_pretrain.checkpoint.staging import NotEnoughSpaceError, clear_leftovers
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.world import World

T = TypeVar("T")

# No room left: on the disk, of the user's quota, or for a file of this size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# How libraries written in Rust (safetensors, tokenizers) name what the operating system said.
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def take_over(checkpoints: Path, world: World) -> Claim:
    """Become the one start of a run that may commit, and clear what dead ones left (collective).

    Raises:
        UserError: another process trains in the folder, or it cannot be written.
    """

    def on_first() -> Claim:
        mine = claim(checkpoints)
        clear_leftovers(checkpoints)
        return mine

    taken: Claim = world.on_first(lambda: on_disk(checkpoints, on_first))
    return taken


def on_disk(checkpoints: Path, action: Callable[[], T]) -> T:
    """Do something that the disk may refuse; then it is the user who can help.

    Raises:
        UserError: it did.
    """
    try:
        return action()
    except OSError as error:
        raise UserError(f"{checkpoints}: {reason(error)}") from None


def reason(error: OSError) -> str:
    """Return an operating-system error for people, with the file where there is one."""
    hint = ""
    if isinstance(error, NotEnoughSpaceError) or error.errno in FULL:
        hint = "; free some, or lower checkpoint.keep.last"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = "; make the folder writable, or choose another output"
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}{hint}"


def as_disk_error(error: Exception) -> OSError | None:
    """Return the operating-system error that a library has dressed up as one of its own, or None."""
    if isinstance(error, OSError):
        return error
    found = OS_ERROR.search(str(error))
    return None if found is None else OSError(int(found.group(1)), os.strerror(int(found.group(1))))
