"""Processes by /proc (Linux): who descends from whom, and whether a number still means what it meant."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def parents() -> dict[int, int]:
    """Return every process's parent."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # "42 (any name, with brackets) S 1 ...": the name may hold anything, even a bracket.
                after_name = (folder / "stat").read_text(errors="replace").rpartition(")")[2]
                found[int(folder.name)] = int(after_name.split()[1])
    return found


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """Return the processes below `root`, without itself."""
    children: dict[int, list[int]] = {}
    for process, parent in parents.items():
        children.setdefault(parent, []).append(process)
    found: set[int] = set()
    waiting = [root]
    while waiting:
        new = set(children.get(waiting.pop(), ())) - found
        found |= new
        waiting.extend(new)
    return found


def command_line(process: int) -> list[str]:
    """Return a process's command line; empty when there is no such process (any more)."""
    with suppress(OSError):
        return (PROC / str(process) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def kill_below(root: int) -> None:
    """Kill the processes below `root`, now."""
    for process in descendants(root, parents()):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
