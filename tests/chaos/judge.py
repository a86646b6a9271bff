"""What a run's folder ought to give back after a fault, and whether it did."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparse_pretrain.checkpoint.integrity import problem_with
from sparse_pretrain.checkpoint.layout import (
    CHECKPOINTS,
    REPLACED,
    STEP_NAME,
    WEIGHTS,
    resolve_checkpoint,
    saved_steps,
    step_folder,
)
from sparse_pretrain.checkpoint.store import open_weights, read_masks
from tests.chaos.watch import last_step, step_being_written
from tests.tiny import read_rows

NOT_SAVED = re.compile(r"step (\d+) was not saved")


@dataclass
class Tally:
    """What went wrong; nothing should.

    Attributes:
        lost: restarts that found no good checkpoint, or lost more than one save interval of work; hangs.
        corrupt: damaged checkpoints that were accepted, half-written ones under a checkpoint's name, finished
            runs that differ from the uninterrupted one.
        untidy: runs that ended otherwise than they should have, though nothing was lost.
    """

    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    untidy: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.corrupt or self.untidy)


@dataclass(frozen=True)
class Expected:
    """What the next start must do, read from the folder while nothing runs.

    Attributes:
        checkpoint: the step of the newest checkpoint that is whole; None: there is none.
        damaged: steps of newer ones that we damaged.
        worked: the step from which lost work counts: the one that was being saved, else the last one trained.
    """

    checkpoint: int | None
    damaged: tuple[int, ...]
    worked: int

    def complaint(self, every: int) -> str | None:
        """Return what is wrong when more than a save interval, and one more for each damaged checkpoint, is lost."""
        lost = self.worked - (self.checkpoint or 0)
        if lost > every * (1 + len(self.damaged)):
            return f"{lost} steps of work lost: worked until {self.worked}, newest whole checkpoint {self.checkpoint}"
        return None


class Damaged:
    """Remembers which checkpoints we damaged, independently of what the program thinks of them.

    A checkpoint is known by the moment its folder of weights was last written to: a later one of the same step
    is another one.
    """

    def __init__(self) -> None:
        self._marks: set[tuple[str, int]] = set()

    def add(self, checkpoint: Path) -> None:
        """Remember that a checkpoint is damaged, after it was."""
        self._marks.add(mark_of(checkpoint))

    def __contains__(self, checkpoint: Path) -> bool:
        return mark_of(checkpoint) in self._marks


def mark_of(checkpoint: Path) -> tuple[str, int]:
    """Return what tells a checkpoint from a later one of the same step; it survives being copied or renamed."""
    name = checkpoint.name.removeprefix(".").removesuffix(REPLACED)
    return name, (checkpoint / WEIGHTS).stat().st_mtime_ns


def on_disk(run: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by step; those that are aside because a new one never came count as well."""
    found = {}
    for aside in (run / CHECKPOINTS).glob(f".step-*{REPLACED}"):
        match = STEP_NAME.fullmatch(aside.name.removeprefix(".").removesuffix(REPLACED))
        if match is not None:
            found[int(match.group(1))] = aside
    for step in saved_steps(run / CHECKPOINTS):
        found[step] = step_folder(run / CHECKPOINTS, step)
    return found


def whole_steps(run: Path, damaged: Damaged) -> list[int]:
    """Return the steps of the checkpoints that nobody damaged, ascending."""
    return sorted(step for step, folder in on_disk(run).items() if folder not in damaged)


def expect(run: Path, damaged: Damaged, printed: str, every: int, disk_was_full: bool = False) -> Expected:
    """Look at a run's folder while nothing runs.

    Args:
        run: the run's folder.
        damaged: what we damaged.
        printed: by the last start that began.
        every: steps between saves.
        disk_was_full: in that start. Whatever met it first (perhaps the metrics, so that no save is named as the
            one refused), the last save that was due is not there.
    """
    whole = whole_steps(run, damaged)
    newest = whole[-1] if whole else None
    newer = tuple(step for step in on_disk(run) if newest is not None and step > newest and step not in whole)
    refused = NOT_SAVED.search(printed)
    trained = last_step(run) or 0
    saving = int(refused.group(1)) if refused else step_being_written(run)
    if saving is None and disk_was_full and trained >= every:
        saving = trained - trained % every
    return Expected(newest, newer, trained if saving is None else min(saving, trained))


def half_written(run: Path, damaged: Damaged) -> list[str]:
    """Return what is wrong with checkpoints that nobody damaged."""
    problems = []
    for step in whole_steps(run, damaged):
        folder = on_disk(run)[step]
        problem = problem_with(folder)
        if problem is not None:
            problems.append(f"{folder}: {problem}")
    return problems


def differences(run: Path, reference: Path) -> list[str]:
    """Compare a finished run with the uninterrupted one: masters, moments, masks and the loss of every step."""
    mine, other = resolve_checkpoint(run), resolve_checkpoint(reference)
    found = [] if mine.name == other.name else [f"ends with {mine.name}, the reference with {other.name}"]
    one, two = open_weights(mine), open_weights(other)
    if dict(one.shapes) != dict(two.shapes):
        return [*found, "other parameters"]
    for name in one.shapes:
        if one.kinds(name) != two.kinds(name):
            found.append(f"{name}: has {one.kinds(name)}, the reference {two.kinds(name)}")
            continue
        for kind in one.kinds(name):
            # As integers: no tolerance, and a NaN equals itself.
            bits = [reader.whole(kind, name).view(torch.int32) for reader in (one, two)]
            if not torch.equal(*bits):
                found.append(f"{kind}/{name}: {int((bits[0] != bits[1]).sum())} values differ")
    masks = [read_masks(folder) for folder in (mine, other)]
    digests = [None if mask is None else mask.digest() for mask in masks]
    if digests[0] != digests[1]:
        found.append("masks differ")
    if losses(run) != losses(reference):
        found.append("metrics.jsonl: another loss, or a step missing or twice")
    return found


def losses(run: Path) -> str:
    """Return step and loss of every row of a run."""
    return json.dumps([(row["step"], row["loss"]) for row in read_rows(run, "train")])
