"""`checkpoint ls`: what lies in a folder of checkpoints. No weight is read, so it is as fast for terabytes."""

import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from sparse_pretrain.checkpoint.fence import OWNER, Claim, is_alive, read_owner
from sparse_pretrain.checkpoint.integrity import problem_with, read_manifest
from sparse_pretrain.checkpoint.layout import (
    CHECKPOINTS,
    LATEST,
    MANIFEST,
    PARTIAL,
    REPLACED,
    STATE,
    checkpoints_of,
    saved_steps,
    step_folder,
)
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, show_bytes
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet

Report = dict[str, Any]

# Masks are counted up to this size (512 million weights): beyond it a look is no longer instant.
MASKS_UP_TO = 64_000_000
PARTIAL_NAME = re.compile(r"\.step-\d+\.(?:start-(\d+)|deleted)\.partial")


def find_checkpoints(path: Path) -> Path:
    """Return the folder of checkpoints, given it or its run's folder; it may hold leftovers only.

    Raises:
        UserError: there is no such folder, or it is neither.
    """
    path = path.expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run folder, or its {CHECKPOINTS} folder")
    for folder in (path / CHECKPOINTS, path):
        if (folder / OWNER).is_file() or any(folder.glob(f".step-*{PARTIAL}")):
            return folder
    return checkpoints_of(path)


def list_checkpoints(path: Path) -> Report:
    """Describe all checkpoints of a run, and what saves have left behind.

    Returns:
        JSON-able: `checkpoints` (the folder), `latest`, `owner`, `steps` (a row a checkpoint, see `describe`),
        `leftovers` (name, bytes, state), `problems` (one line each).

    Raises:
        UserError: no checkpoints there.
    """
    folder = find_checkpoints(path)
    owner = read_owner(folder)
    latest = read_latest(folder)
    rows = [describe(step_folder(folder, step)) for step in saved_steps(folder)]
    problems = [f"{row['name']}: {row['problem']}" for row in rows if row["problem"] is not None]
    if latest is not None and latest not in [row["name"] for row in rows]:
        problems.append(f"{LATEST} names {latest}, which is not there")
    return {
        "checkpoints": str(folder),
        "latest": latest,
        "owner": None if owner is None else {**asdict(owner), "alive": is_alive(owner)},
        "steps": [{**row, "latest": row["name"] == latest} for row in rows],
        "leftovers": leftovers(folder, owner),
        "problems": problems,
    }


def describe(folder: Path) -> Report:
    """Describe one checkpoint by its small files and the sizes of the others.

    Returns:
        `name`, `step`, `written` (UTC, ISO 8601), `bytes` (on the disk), `ranks`, `stage`, `start`, `sparsity` (in
        [0, 1]; None without masks, or with many), `metrics`, `problem` (None: every file has its size); what
        cannot be read is None.
    """
    row: Report = {
        "name": folder.name,
        "step": int(folder.name.removeprefix("step-")),
        "written": None,
        "bytes": folder_bytes(folder),
        "ranks": None,
        "stage": None,
        "start": None,
        "sparsity": None,
        "metrics": {},
        "problem": problem_with(folder, checksums=False),
    }
    try:
        manifest = read_manifest(folder)
        written = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
        row.update(ranks=manifest.ranks, start=manifest.start, written=written.isoformat(timespec="seconds"))
        state = read_json(folder / STATE)
        row.update(stage=state["stage"], metrics=state["metrics"], sparsity=mask_sparsity(folder / MASK_FILE))
    except (ValueError, UserError, OSError, KeyError, TypeError) as error:
        row["problem"] = row["problem"] or str(error)
    return row


def mask_sparsity(path: Path) -> float | None:
    """Return the share of pruned weights that a mask file of moderate size says, else None.

    Raises:
        UserError: the file is broken.
    """
    if not path.is_file() or path.stat().st_size > MASKS_UP_TO:
        return None
    return MaskSet.load(path).total_sparsity()


def read_latest(folder: Path) -> str | None:
    """Return the name that the file `latest` holds, None when there is none."""
    try:
        return (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def leftovers(folder: Path, owner: Claim | None) -> list[Report]:
    """Return what is no checkpoint: saves under way, what dead ones left, half-done replacements and deletions.

    Each has `name`, `bytes` and `state`: `being written`; `unknown` (by the newest start, on another machine,
    which cannot be asked from here); `abandoned`; `replaced` (a checkpoint is in its place); `set aside` (its
    replacement never came: the next start gives it its name back).
    """
    found = []
    for path in sorted(folder.glob(".step-*")):
        if path.name.endswith(PARTIAL):
            state = state_of_partial(path.name, owner)
        elif path.name.endswith(REPLACED):
            final = folder / path.name.removeprefix(".").removesuffix(REPLACED)
            state = "replaced" if final.exists() else "set aside"
        else:
            continue
        found.append({"name": path.name, "bytes": folder_bytes(path), "state": state})
    return found


def state_of_partial(name: str, owner: Claim | None) -> str:
    """Say whether somebody is still writing a partial folder: only the newest start of a run may."""
    match = PARTIAL_NAME.fullmatch(name)
    if owner is None or match is None or match.group(1) != str(owner.start):
        return "abandoned"
    if owner.host != platform.node():
        return "unknown"
    return "being written" if is_alive(owner) else "abandoned"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; files that vanish meanwhile count for nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def render(report: Report, console: Console) -> None:
    """Print a line for each checkpoint, what saves left behind, and problems; times are local."""
    lines = [("checkpoint", "written", "size", "ranks", "stage", "start", "sparsity", "files", "held-out")]
    for row in report["steps"]:
        metrics = (f"{key.removeprefix('validation_')} {value:.4f}" for key, value in row["metrics"].items())
        lines.append(
            (
                row["name"] + ("*" if row["latest"] else ""),
                show_time(row["written"]),
                show_bytes(row["bytes"]),
                *("?" if row[key] is None else str(row[key]) for key in ("ranks", "stage", "start")),
                "-" if row["sparsity"] is None else f"{row['sparsity']:.2%}",
                "whole (sizes match)" if row["problem"] is None else "broken",
                "  ".join(metrics) or "-",
            )
        )
    for line in aligned(lines):
        say(console, line)
    if report["latest"] is not None:
        say(console, f"* latest; all in {report['checkpoints']}")
    for problem in report["problems"]:
        say(console, f"problem: {problem}")
    for leftover in report["leftovers"]:
        say(console, f"{leftover['name']}: {show_bytes(leftover['bytes'])}, {leftover['state']}")
    owner = report["owner"]
    if owner is not None and owner["alive"]:
        say(console, f"process {owner['process']} on this machine is training in this folder")


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells as text, cells below each other; whole however narrow the terminal is."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def show_time(written: str | None) -> str:
    """Return a moment in local time, to the minute."""
    return "?" if written is None else datetime.fromisoformat(written).astimezone().strftime("%Y-%m-%d %H:%M")


def say(console: Console, text: str) -> None:
    """Print one line as it is: brackets in a path are no markup, and a narrow terminal does not cut it."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
