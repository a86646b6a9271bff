"""Keeps one node's processes together, so that all of them can be ended: `python -m launcher.lab.keeper`.

slurmd starts jobs as processes that leave it: they outlive it, which is how SLURM survives an upgrade. The
kernel gives such orphans to the nearest "subreaper" above them. The keeper is one, so all that ever came from
the node's slurmd is below it, and nothing else is. It ends everything on SIGTERM, and, on a leash, when the
process that started it is gone, however that one died.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from launcher.lab.processes import kill_below

PR_SET_CHILD_SUBREAPER = 36
MODULE = "launcher.lab.keeper"


def keeper_command(process_file: Path, leash: bool, afterwards: str, script: str) -> list[str]:
    """Return the command of a keeper.

    Args:
        process_file: where it writes its process id while there is anything to keep.
        leash: end when the standard input ends.
        afterwards: shell script to run when everything below has ended.
        script: shell script to run and keep.
    """
    # -S: site-packages would only make it slower.
    return [
        *(sys.executable, "-S", "-m", MODULE, str(process_file)),
        *("leash" if leash else "free", afterwards, script),
    ]


def main(arguments: Sequence[str]) -> None:
    """Run a script and stay until all that came from it has ended."""
    process_file, leash, afterwards, script = arguments
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: end(ending))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    Path(process_file).write_text(f"{os.getpid()}\n")
    subprocess.Popen(["sh", "-ec", script], stdin=subprocess.DEVNULL)
    if leash == "leash":
        threading.Thread(target=wait_for_leash, args=[ending], daemon=True).start()
    reap(ending)
    if afterwards:
        subprocess.run(["sh", "-c", afterwards], stderr=subprocess.DEVNULL, check=False)
    Path(process_file).unlink(missing_ok=True)


def reap(ending: threading.Event) -> None:
    """Wait until there is no process below; while ending, look again after each death.

    One that was started between looking and killing comes to us when its parent dies, so it is seen then.
    """
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return
        if ending.is_set():
            kill_below(os.getpid())


def end(ending: threading.Event) -> None:
    """Kill everything below, from now on."""
    ending.set()
    kill_below(os.getpid())


def wait_for_leash(ending: threading.Event) -> None:
    """End everything when the standard input ends: whoever held its other end is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    end(ending)


if __name__ == "__main__":
    main(sys.argv[1:])
