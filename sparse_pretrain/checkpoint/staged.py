"""A folder that is complete under its name, or not there at all: releases and exports are written this way."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file, fsync_folder


@dataclass(frozen=True)
class Kind:
    """What a folder holds, and how an earlier one is known: only such a one is ever overwritten.

    Attributes:
        name: such as `release`.
        marker: a file that every one of them has.
    """

    name: str
    marker: str


@contextmanager
def staged_folder(out: Path, kind: Kind, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on success force it to the disk and give it the name `out`.

    Args:
        out: the folder to make.
        kind: of folder.
        overwrite: replace an earlier one of this kind at `out`.

    Raises:
        UserError: something else is at `out`, or the disk refused.
    """
    check_target(out, kind, overwrite)
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_errors(out):
            staging.mkdir(parents=True)
            yield staging
            for path in staging.iterdir():
                fsync_file(path)
            fsync_folder(staging)
            replace_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(out: Path, kind: Kind, overwrite: bool) -> None:
    """Refuse to write over anything but, when asked to, an earlier folder of the same kind.

    Raises:
        UserError: with what would help.
    """
    if out.is_file():
        raise UserError(f"{out}: is a file; give the name of a folder for the {kind.name}")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{out}: exists and is not empty; give another folder, or --overwrite")
    if not (out / kind.marker).is_file():
        raise UserError(f"{out}: holds no {kind.name} ({kind.marker} is missing), so it is not overwritten")


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` under the name `target`, keeping an old folder until the new one is in place."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into a line for the user.

    Raises:
        UserError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{out}: not written: {error.strerror or error}") from None
