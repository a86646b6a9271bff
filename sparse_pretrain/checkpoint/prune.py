"""`checkpoint prune`: free room by the rule that training follows, without ever taking the last whole one."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn

from sparse_pretrain.checkpoint.fence import read_owner, refuse_second_writer
from sparse_pretrain.checkpoint.integrity import problem_with
from sparse_pretrain.checkpoint.layout import STATE, saved_steps, step_folder
from sparse_pretrain.checkpoint.listing import folder_bytes, leftovers, say
from sparse_pretrain.checkpoint.retention import steps_to_delete
from sparse_pretrain.checkpoint.staging import clear_leftovers, delete_old
from sparse_pretrain.config.training import KeepSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, show_bytes
from sparse_pretrain.telemetry.bar import progress_bar

Report = dict[str, Any]


def keep_rule(checkpoints: Path) -> KeepSection:
    """Return the rule of the run's recipe, as its newest readable checkpoint has it; else the recipe's default."""
    for step in reversed(saved_steps(checkpoints)):
        try:
            values = read_json(step_folder(checkpoints, step) / STATE)["recipe"]["checkpoint"]["keep"]
            return KeepSection.model_validate(values)
        except (UserError, OSError, KeyError, TypeError, ValueError):
            continue
    return KeepSection()


def find_broken(checkpoints: Path, console: Console) -> dict[int, str]:
    """Compare the checksums of all checkpoints; return by step what is wrong.

    Args:
        checkpoints: the run's checkpoint folder.
        console: shows how far it is, when it is a terminal.
    """
    folders = {step: step_folder(checkpoints, step) for step in saved_steps(checkpoints)}
    sizes = {step: folder_bytes(folder) for step, folder in folders.items()}
    broken = {}
    with progress_bar(console, DownloadColumn(), transient=True) as bar:
        task = bar.add_task("checksums", total=sum(sizes.values()), numbers="")
        for step, folder in folders.items():
            bar.update(task, numbers=folder.name)
            if (problem := problem_with(folder)) is not None:
                broken[step] = problem
            bar.advance(task, sizes[step])
    return broken


def prune(checkpoints: Path, keep: KeepSection, dry_run: bool, console: Console) -> Report:
    """Delete checkpoints that are not kept, and what dead saves have left.

    A save that may be under way on another machine, which cannot be asked from here, is left alone.

    Args:
        checkpoints: the run's checkpoint folder.
        keep: which ones stay (see `retention.steps_to_delete`).
        dry_run: only say what would be done.
        console: shows how far the checksums are, when it is a terminal.

    Returns:
        JSON-able: `checkpoints`, `dry_run`, `keep_last`, `keep_every`, `deleted` and `kept` (name, bytes and
        problem of each), `leftovers` (name and bytes of what was deleted), `waiting` (names of what was left
        alone), `freed_bytes`.

    Raises:
        UserError: a process of this machine trains in the folder, or the disk refuses.
    """
    owner = read_owner(checkpoints)
    refuse_second_writer(checkpoints)
    broken = find_broken(checkpoints, console)
    steps = saved_steps(checkpoints)
    going = steps_to_delete(steps, keep.last, keep.every, broken)
    rows = {step: row_of(checkpoints, step, broken) for step in steps}
    remains = leftovers(checkpoints, owner)
    waiting = [row["name"] for row in remains if row["state"] in ("being written", "unknown")]
    cleared = [] if waiting else [row for row in remains if row["state"] != "set aside"]
    report = {
        "checkpoints": str(checkpoints),
        "dry_run": dry_run,
        "keep_last": keep.last,
        "keep_every": keep.every,
        "deleted": [rows[step] for step in going],
        "kept": [rows[step] for step in steps if step not in going],
        "leftovers": [{"name": row["name"], "bytes": row["bytes"]} for row in cleared],
        "waiting": waiting,
        "freed_bytes": sum(rows[step]["bytes"] for step in going) + sum(row["bytes"] for row in cleared),
    }
    if not dry_run:
        # Checksums may have taken an hour: somebody may have started the run meanwhile.
        refuse_second_writer(checkpoints)
        try:
            # First: a checkpoint that gets its name back from a half-done replacement has not been read here.
            delete_old(checkpoints, keep.last, keep.every, broken)
            if not waiting:
                clear_leftovers(checkpoints)
        except OSError as error:
            raise UserError(f"{error.filename or checkpoints}: not deleted: {error.strerror}") from None
    return report


def row_of(checkpoints: Path, step: int, broken: dict[int, str]) -> Report:
    """Describe one checkpoint."""
    folder = step_folder(checkpoints, step)
    return {"name": folder.name, "bytes": folder_bytes(folder), "problem": broken.get(step)}


def render(report: Report, console: Console) -> None:
    """Print a line for each thing that went or, when it is broken, stays; then the room."""
    verb = "would delete" if report["dry_run"] else "deleted"
    for row in report["deleted"]:
        why = "" if row["problem"] is None else f", broken: {row['problem']}"
        say(console, f"{verb} {row['name']} ({show_bytes(row['bytes'])}{why})")
    for row in report["leftovers"]:
        say(console, f"{verb} {row['name']} ({show_bytes(row['bytes'])}, left by a save that did not finish)")
    for row in report["kept"]:
        if row["problem"] is not None:
            say(console, f"kept {row['name']}, although broken, as too few are whole: {row['problem']}")
    for name in report["waiting"]:
        say(console, f"kept {name}: another machine may be writing it")
    stay, there = len(report["kept"]), len(report["kept"]) + len(report["deleted"])
    every = "" if report["keep_every"] is None else f" and multiples of {report['keep_every']}"
    say(
        console,
        f"{report['checkpoints']}: {stay} of {there} checkpoints stay (the newest {report['keep_last']}{every}); "
        f"{show_bytes(report['freed_bytes'])} {'would be freed' if report['dry_run'] else 'freed'}",
    )
