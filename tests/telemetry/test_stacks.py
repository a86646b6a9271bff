"""SIGQUIT shows where a process is, and it goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import sys, time
from sparse_pretrain.telemetry.stacks import show_stacks_on_request
show_stacks_on_request()
def hang_here():
    print("ready", flush=True)
    time.sleep(1.5)
hang_here()
print("went on", flush=True)
"""


def test_sigquit_writes_stacks_to_the_log_and_the_process_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "rank-0.log"
    with log.open("wb") as handle:
        process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=handle, stderr=handle)
    deadline = time.monotonic() + 20
    while b"ready" not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGQUIT)
    assert process.wait(20) == 0
    shown = log.read_text()
    assert "most recent call first" in shown
    assert "in hang_here" in shown
    assert shown.endswith("went on\n")
