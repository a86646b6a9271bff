"""What malloc keeps, seen from outside: in a process of its own, for it cannot be undone."""

import subprocess
import sys

PROGRAM = """
import re, sys
from pathlib import Path
import torch
from sparse_pretrain.training.heap import keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
before = resident()
values = torch.ones(50_000_000)
del values
print(kept, resident() - before > 150)
"""


def freed(how: str) -> str:
    command = [sys.executable, "-c", PROGRAM, how]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout.strip()


def test_freed_tensors_stay_with_the_process() -> None:
    assert freed("kept") == "True True"
    assert freed("as it is") == "None False"
