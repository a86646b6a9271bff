"""Run folders and ranks for the tests of `launch status`, `logs` and `cancel`."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from sparse_pretrain.telemetry.phases import progress_path

# A rank in small: a log, SIGQUIT as in sparse_pretrain.telemetry.stacks, a progress file, a save on SIGTERM.
RANK = """
import faulthandler, json, os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
faulthandler.register(signal.SIGQUIT, file=2, all_threads=True)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
print("rank", rank, "is ready", flush=True)
def wait_for_others():
    while not stopped:
        time.sleep(0.02)
wait_for_others()
(folder / "checkpoints" / "step-0000012" / "weights").mkdir(parents=True, exist_ok=True)
(folder / "checkpoints" / "step-0000012" / "manifest.json").write_text("{}")
path = folder / "progress" / f"rank-{rank}.json"
path.write_text(json.dumps({**json.loads(path.read_text()), "phase": "stopped"}))
sys.exit(75)
"""


def write_rank(folder: Path, rank: int, **facts: Any) -> None:
    """Write a rank's progress as it would itself; `facts` replace what a well rank says."""
    now = time.time()
    usual = {
        "rank": rank,
        "host": "elsewhere",
        "process": 1,
        "process_started": now - 1000,
        "world_size": 2,
        "launch": "one",
        "job_id": None,
        "job_step": None,
        "phase": "training",
        "step": 100,
        "steps": 1000,
        "moved": now,
        "time": now,
        "where": "training/world.py:38 sum",
        "step_seconds": 0.5,
    }
    path = progress_path(folder, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**usual, **facts}))


def start_ranks(folder: Path, count: int = 2) -> list[subprocess.Popen[bytes]]:
    """Start ranks in small on this machine, and wait until they listen."""
    (folder / "logs").mkdir(parents=True)
    processes = []
    for rank in range(count):
        with (folder / "logs" / f"rank-{rank}.log").open("wb") as log:
            command = [sys.executable, "-c", RANK, str(folder), str(rank)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        started = psutil.Process(processes[-1].pid).create_time()
        write_rank(
            folder,
            rank,
            host=platform.node(),
            process=processes[-1].pid,
            process_started=started,
            world_size=count,
        )
    deadline = time.monotonic() + 20
    while any(b"ready" not in (folder / "logs" / f"rank-{rank}.log").read_bytes() for rank in range(count)):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return processes
