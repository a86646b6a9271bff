"""A fast disk of each machine in front of the shared one.

Ranks write their shares there first and copy them to the run folder afterwards. When a run is killed between
the two, the next start on the same machines finishes the copy: a grace period has to be long enough for the
local disks only.

    LOCAL/RUN/step-0001000.start-3/
      weights/rank-00002.safetensors …   as in the checkpoint
      .rank-00002.json                   what rank 2 wrote here; written last
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sparse_pretrain.checkpoint.checksum import CHUNK, Checksum
from sparse_pretrain.checkpoint.fence import Claim
from sparse_pretrain.checkpoint.integrity import FileFacts, Ranks
from sparse_pretrain.checkpoint.layout import saved_steps, staging_folder
from sparse_pretrain.checkpoint.staging import commit
from sparse_pretrain.checkpoint.tensor_file import write_all
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_json

NOTE = ".rank-*.json"


@dataclass(frozen=True)
class LocalShare:
    """One rank's share of a save, complete on some machine's disk.

    Attributes:
        folder: where, on that machine.
        step: optimizer steps done.
        start: number of the start that wrote it.
        rank: whose share.
        ranks: how many ranks wrote.
        files: relative path -> (bytes, checksum).
    """

    folder: str
    step: int
    start: int
    rank: int
    ranks: int
    files: Mapping[str, tuple[int, str]]


def local_folder(local: Path, claim: Claim, step: int) -> Path:
    """Return where this start's ranks on this machine write the checkpoint of `step` first."""
    return local / claim.run / f"step-{step:07d}.start-{claim.start}"


def note_share(
    folder: Path, step: int, start: int, rank: int, ranks: int, files: Mapping[str, FileFacts]
) -> None:
    """Say that a rank's share is complete on this machine."""
    listed = {name: (facts.bytes, facts.xxh3) for name, facts in files.items()}
    write_json(
        folder / f".rank-{rank:05d}.json",
        asdict(LocalShare(str(folder), step, start, rank, ranks, listed)),
    )


def find_shares(local: Path, run: str) -> list[LocalShare]:
    """Return the complete shares of a run on this machine."""
    found = []
    for note in sorted((local / run).glob(f"*/{NOTE}")):
        try:
            share = LocalShare(**read_json(note))
        except (UserError, TypeError):
            continue
        found.append(share)
    return found


def newest_complete(
    everyone: Sequence[Sequence[LocalShare]], after: int
) -> dict[int, tuple[int, LocalShare]]:
    """Choose the newest save of which all ranks' shares are there.

    Args:
        everyone: what each of the present ranks finds on its machine.
        after: only saves of later steps count.

    Returns:
        By the rank that wrote it: which present rank shall copy it, and the share. Empty when there is none.
    """
    saves: dict[tuple[int, int], dict[int, tuple[int, LocalShare]]] = {}
    for finder, shares in enumerate(everyone):
        for share in shares:
            if share.step > after:
                saves.setdefault((share.step, share.start), {}).setdefault(share.rank, (finder, share))
    for key in sorted(saves, reverse=True):
        shares_of = saves[key]
        if len(shares_of) == next(iter(shares_of.values()))[1].ranks:
            return shares_of
    return {}


def copy_files(source: Path, target: Path, files: Mapping[str, FileFacts]) -> None:
    """Copy files between disks and force them to the second one, comparing checksums on the way.

    Raises:
        OSError: a disk refused, or a copy is not what was written.
    """
    for name, facts in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = Checksum()
        with (source / name).open("rb") as reader, path.open("wb", buffering=0) as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                write_all(writer.fileno(), memoryview(chunk))
            os.fsync(writer.fileno())
        if digest.hexdigest() != facts.xxh3:
            raise OSError(f"{source / name}: it is not what was written there (its checksum differs)")


def finish_local_save(
    checkpoints: Path,
    local: Path,
    run: str | None,
    ranks: Ranks,
    take_over: Callable[[], Claim],
    say: Callable[[str], None],
) -> None:
    """Make a checkpoint of a newer save that is complete on the machines' disks only (collective).

    Args:
        checkpoints: the run's checkpoint folder.
        local: the same path on every machine.
        run: the run's identity; None when it never saved.
        ranks: the collectives.
        take_over: makes this the start that may commit (collective); called only when there is something to do.
        say: told what was done, or why not.
    """
    everyone = ranks.gather(find_shares(local, run) if run is not None else [])
    newest: int = ranks.gather(max(saved_steps(checkpoints), default=-1))[0]
    chosen = newest_complete(everyone, newest)
    if not chosen:
        return
    claim = take_over()
    step = next(iter(chosen.values()))[1].step
    problems = ranks.gather(_copy_mine(checkpoints, claim, chosen, ranks.rank))
    problem = next((found for found in problems if found is not None), None)
    if problem is None and ranks.rank == 0:
        files = {
            name: FileFacts(*facts) for _, share in chosen.values() for name, facts in share.files.items()
        }
        try:
            commit(checkpoints, step, claim, len(chosen), files)
        except OSError as error:
            problem = str(error)
    problem = ranks.gather(problem)[0]
    if problem is None:
        say(f"{checkpoints}: finished the save of step {step} from {local}")
    else:
        say(f"{local}: the save of step {step} there could not be used ({problem})")


def _copy_mine(
    checkpoints: Path, claim: Claim, chosen: Mapping[int, tuple[int, LocalShare]], rank: int
) -> str | None:
    """Copy the shares that are this rank's to copy; return what went wrong."""
    target = staging_folder(checkpoints, next(iter(chosen.values()))[1].step, claim.start)
    try:
        for finder, share in chosen.values():
            if finder == rank:
                files = {name: FileFacts(*facts) for name, facts in share.files.items()}
                copy_files(Path(share.folder), target, files)
    except OSError as error:
        return str(error)
    return None


def forget_local(local: Path, run: str, step: int) -> None:
    """Delete what this machine's disk holds of saves up to `step`."""
    for folder in (local / run).glob("step-*"):
        number = folder.name.removeprefix("step-").split(".")[0]
        if number.isdigit() and int(number) <= step:
            shutil.rmtree(folder, ignore_errors=True)
