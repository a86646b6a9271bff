"""Where everything of a checkpoint lies: names and paths, nothing else.

checkpoints/
  latest                    the newest checkpoint's name, for people and scripts
  .owner.json .lock         who may write here (`checkpoint.fence`)
  step-0001000/             a checkpoint: complete, or not under this name
    manifest.json           every file's size and checksum; written last
    state.json              counters, data position, recipe, versions
    masks.safetensors       one bit a prunable weight (`pruning.masks`)
    model/                  Hugging Face config and tokenizer
    weights/rank-00000.safetensors …   fragments of masters and moments (`checkpoint.shards`)
  .step-0002000.start-3.partial/   being written by start number 3 of the run
  .step-0002000.replaced/          aside for the moment in which a new one takes its name
"""

import re
from pathlib import Path

from sparse_pretrain.errors import UserError

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
WEIGHTS = "weights"
MODEL = "model"
LATEST = "latest"
PARTIAL = ".partial"
REPLACED = ".replaced"
STEP_NAME = re.compile(r"step-(\d{7,})")


def step_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step`."""
    return checkpoints / f"step-{step:07d}"


def staging_folder(checkpoints: Path, step: int, start: int) -> Path:
    """Return the folder in which start number `start` of a run writes the checkpoint of `step`."""
    return checkpoints / f".step-{step:07d}.start-{start}{PARTIAL}"


def replaced_folder(final: Path) -> Path:
    """Return where a checkpoint lies for the moment in which another one takes its name."""
    return final.with_name(f".{final.name}{REPLACED}")


def weight_file(folder: Path, rank: int) -> Path:
    """Return the file of one rank's fragments."""
    return folder / WEIGHTS / f"rank-{rank:05d}.safetensors"


def saved_steps(checkpoints: Path) -> list[int]:
    """Return the steps of committed checkpoints, ascending."""
    matches = (STEP_NAME.fullmatch(path.name) for path in checkpoints.glob("step-*"))
    steps = ((int(match.group(1)), match.string) for match in matches if match is not None)
    # Another spelling of a number, such as step-00000010, would lead to a folder that is not there.
    return sorted(step for step, name in steps if name == step_folder(checkpoints, step).name)


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is a checkpoint of ours, whole or not."""
    return (folder / MANIFEST).is_file() and (folder / WEIGHTS).is_dir()


def checkpoints_of(path: Path) -> Path:
    """Return the folder of checkpoints, given it or its run's folder.

    Raises:
        UserError: there are no checkpoints.
    """
    for folder in (path / CHECKPOINTS, path):
        if saved_steps(folder):
            return folder
    raise UserError(f"{path}: neither a run folder nor a folder of checkpoints (no step-… in it)")


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
