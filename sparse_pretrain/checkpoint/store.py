"""The checkpoints of a run: written aside, committed by one rename, read only when whole."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sparse_pretrain.checkpoint.contents import CheckpointModel
from sparse_pretrain.checkpoint.shards import MASTER, FragmentReader
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file, fsync_folder, read_json, sha256_file, write_json
from sparse_pretrain.models.projections import is_projection
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "weights"
MODEL = "model"
STEP_NAME = re.compile(r"step-(\d{7,})")


class Ranks(Protocol):
    """What saving together needs of the ranks."""

    @property
    def rank(self) -> int:
        """This process's number."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank."""
        ...

    def barrier(self) -> None:
        """Wait for every rank."""
        ...


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return checkpoints / f"step-{step:07d}"


def weight_file(folder: Path, rank: int) -> Path:
    """Return the file of one rank's fragments."""
    return folder / WEIGHTS / f"rank-{rank:05d}.safetensors"


def saved_steps(checkpoints: Path) -> list[int]:
    """Return the steps of committed checkpoints, ascending."""
    names = (STEP_NAME.fullmatch(path.name) for path in checkpoints.glob("step-*"))
    return sorted(int(match.group(1)) for match in names if match is not None)


def save_checkpoint(
    checkpoints: Path,
    step: int,
    ranks: Ranks,
    write_shard: Callable[[Path], None],
    write_shared: Callable[[Path], None],
    keep_last: int,
) -> Path:
    """Save together with all ranks; a checkpoint exists under its name only when it is whole.

    Every rank writes its shard into a staging folder; rank 0 adds the shared files, lists every file's
    size and SHA-256 in the manifest, renames the folder, and deletes checkpoints beyond `keep_last`.

    Args:
        checkpoints: the run's checkpoint folder.
        step: optimizer steps done.
        ranks: the collectives.
        write_shard: writes this rank's file at the path it is given.
        write_shared: writes rank 0's files into the folder it is given.
        keep_last: committed checkpoints to keep.
    """
    final = step_folder(checkpoints, step)
    staging = final.with_name(f".{final.name}.partial")
    if ranks.rank == 0:
        shutil.rmtree(staging, ignore_errors=True)
        (staging / WEIGHTS).mkdir(parents=True)
    ranks.barrier()
    shard = weight_file(staging, ranks.rank)
    write_shard(shard)
    listed = ranks.gather({str(shard.relative_to(staging)): describe(shard)})
    if ranks.rank == 0:
        write_shared(staging)
        files = {name: about for part in listed for name, about in part.items()}
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            name = str(path.relative_to(staging))
            if name not in files:
                fsync_file(path)
                files[name] = describe(path)
        write_json(staging / MANIFEST, {"version": 1, "step": step, "ranks": len(listed), "files": files})
        for folder in (staging / WEIGHTS, staging):
            fsync_folder(folder)
        shutil.rmtree(final, ignore_errors=True)
        staging.rename(final)
        fsync_folder(checkpoints)
        for old in saved_steps(checkpoints)[:-keep_last]:
            shutil.rmtree(step_folder(checkpoints, old))
    ranks.barrier()
    return final


def describe(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def problem_with(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None when its manifest is there and every file matches."""
    if not (folder / MANIFEST).is_file():
        return f"no {MANIFEST}: the save was not finished"
    try:
        files = read_json(folder / MANIFEST)["files"]
    except (UserError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, about in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != about["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, the manifest says {about['bytes']}"
        if sha256_file(path) != about["sha256"]:
            return f"{name} does not match its checksum"
    return None


def newest_checkpoint(checkpoints: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint, or None when the run has none yet.

    Args:
        checkpoints: the run's checkpoint folder.
        say: told of every broken checkpoint that is passed over, and why.

    Raises:
        UserError: there are checkpoints and none is whole; starting afresh would hide the loss.
    """
    broken: list[str] = []
    for step in reversed(saved_steps(checkpoints)):
        folder = step_folder(checkpoints, step)
        problem = problem_with(folder)
        if problem is None:
            for line in broken:
                say(f"{line}; taking the one before")
            return folder
        broken.append(f"{folder}: {problem}")
    if broken:
        raise UserError(
            f"{broken[0]}; none of {len(broken)} checkpoints is whole; restore one, or choose another output"
        )
    return None


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is a checkpoint of ours, whole or not."""
    return (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_dir()


def resolve_checkpoint(path: Path) -> Path:
    """Return a checkpoint's folder, given it or its run's folder (then the newest).

    Raises:
        UserError: there is no checkpoint.
    """
    if is_checkpoint(path):
        return path
    steps = saved_steps(path / CHECKPOINTS)
    if not steps:
        raise UserError(f"{path}: neither a checkpoint nor a run folder with checkpoints")
    return step_folder(path / CHECKPOINTS, steps[-1])


def read_checkpoint(folder: Path) -> CheckpointModel:
    """Read the fp32 masters (dense: masks are not applied) and all that a release tells about them.

    Needs neither DeepSpeed nor a GPU nor the number of ranks that wrote it. Distillation's projections
    are no part of the model and are left out.

    Raises:
        UserError: the folder is not a whole checkpoint.
    """
    problem = problem_with(folder)
    if problem is not None:
        raise UserError(f"{folder}: {problem}")
    state = read_json(folder / STATE)
    reader = FragmentReader(sorted((folder / WEIGHTS).iterdir()))
    masks = folder / MASK_FILE
    return CheckpointModel(
        weights={name: reader.whole(MASTER, name) for name in reader.shapes if not is_projection(name)},
        masks=MaskSet.load(masks) if masks.is_file() else None,
        model_folder=folder / MODEL,
        step=int(state["step"]),
        recipe=state["recipe"],
        data_fingerprint=state["loader"]["fingerprint"],
        metrics=state["metrics"],
        versions=state["versions"],
    )
