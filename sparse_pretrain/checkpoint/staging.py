"""One save: files are written aside, and become a checkpoint by one rename, or not at all."""

import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.fence import Claim, check_owner, locked, refuse_second_writer
from sparse_pretrain.checkpoint.integrity import FileFacts, Manifest
from sparse_pretrain.checkpoint.layout import (
    LATEST,
    MANIFEST,
    PARTIAL,
    REPLACED,
    WEIGHTS,
    replaced_folder,
    saved_steps,
    staging_folder,
    step_folder,
)
from sparse_pretrain.checkpoint.retention import steps_to_delete
from sparse_pretrain.files import fsync_file, fsync_folder, show_bytes, write_json, write_text


def prepare_staging(checkpoints: Path, step: int, claim: Claim, needed: int) -> Path:
    """Make the folder that all ranks write the checkpoint of `step` into; rank 0 calls it.

    Args:
        checkpoints: the run's checkpoint folder.
        step: optimizer steps done.
        claim: this start of the run.
        needed: bytes that all ranks are going to write.

    Raises:
        OSError: it cannot be made, or the disk has not enough room (`ENOSPC`): better before the first byte.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(checkpoints).free
    if free < needed:
        raise NotEnoughSpaceError(needed, free)
    folder = staging_folder(checkpoints, step, claim.start)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / WEIGHTS).mkdir(parents=True)
    return folder


class NotEnoughSpaceError(OSError):
    """The disk has less room than a checkpoint takes."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"a checkpoint takes {show_bytes(needed)}, {show_bytes(free)} are free")


def describe_files(folder: Path) -> dict[str, FileFacts]:
    """Force what the ranks have in common to the disk, and return what the manifest is to say of it.

    The ranks' shards are left out, and so are hidden names: on a local disk that ranks share they are another rank's
    notes, written and renamed meanwhile. Each rank tells of its own.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.parts[0] != WEIGHTS and not name.name.startswith("."):
            fsync_file(path)
            files[name.as_posix()] = FileFacts(path.stat().st_size, checksum_file(path))
    return files


def commit(
    checkpoints: Path, step: int, claim: Claim, ranks: int, files: Mapping[str, FileFacts]
) -> tuple[Path, Manifest]:
    """Turn a staging folder whose files are all on the disk into a checkpoint; rank 0 calls it.

    Raises:
        SupersededError: a newer start of the run owns the folder; nothing was changed.
        OSError: the disk refused; the staging folder stays what it is.
    """
    folder, final = staging_folder(checkpoints, step, claim.start), step_folder(checkpoints, step)
    manifest = Manifest(step, claim.run, claim.start, ranks, files)
    aside = replaced_folder(final)
    with locked(checkpoints):
        # Before anything else: whoever took over has deleted this folder, which is no reason of its own.
        check_owner(checkpoints, claim)
        write_json(folder / MANIFEST, manifest.to_json())
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            fsync_folder(inner)
        if final.exists():
            # The same step of an earlier start, broken or not: it goes when the new one is in its place.
            final.rename(aside)
        try:
            folder.rename(final)
        except OSError:
            finish_replacements(checkpoints)
            raise
        fsync_folder(checkpoints)
        with suppress(OSError):
            # For people and scripts; the checkpoint is one without it.
            write_text(checkpoints / LATEST, final.name + "\n")
    shutil.rmtree(aside, ignore_errors=True)
    return final, manifest


def discard_staging(checkpoints: Path, step: int, claim: Claim) -> None:
    """Delete what a failed save has written."""
    shutil.rmtree(staging_folder(checkpoints, step, claim.start), ignore_errors=True)


def clear_leftovers(checkpoints: Path) -> None:
    """Delete what dead starts were writing, and finish replacements that they left half done.

    Call it after `claim`: from then on they cannot commit.
    """
    with locked(checkpoints):
        finish_replacements(checkpoints)
    for partial in checkpoints.glob(f".step-*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def recover(checkpoints: Path) -> None:
    """Finish replacements that a dead start left half done; before looking for the newest checkpoint.

    Raises:
        UserError: the start is not dead.
    """
    if checkpoints.is_dir():
        refuse_second_writer(checkpoints)
        with locked(checkpoints):
            finish_replacements(checkpoints)


def finish_replacements(checkpoints: Path) -> None:
    """Give a checkpoint its name back whose replacement never came; call it under `locked`."""
    for aside in checkpoints.glob(f".step-*{REPLACED}"):
        final = checkpoints / aside.name.removeprefix(".").removesuffix(REPLACED)
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)


def delete_old(checkpoints: Path, last: int, every: int | None, broken: Collection[int]) -> list[int]:
    """Delete checkpoints that are not kept (see `steps_to_delete`); return their steps."""
    gone = steps_to_delete(saved_steps(checkpoints), last, every, broken)
    for step in gone:
        # Under another name it is no checkpoint any more, however far the deletion gets.
        doomed = checkpoints / f".step-{step:07d}.deleted{PARTIAL}"
        # Of a deletion that did not get far; a rename does not replace a folder with something in it.
        shutil.rmtree(doomed, ignore_errors=True)
        step_folder(checkpoints, step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return gone
