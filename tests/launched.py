"""The tiny recipe through the real command, on several ranks."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def launch_tiny(
    folder: Path, output: str, nproc: int, *overrides: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `launch local train-tiny` in `folder`, on the data in `folder/data`, with more settings.

    Args:
        folder: where it runs.
        output: the run folder.
        nproc: ranks.
        overrides: `key=value` settings; later ones win.
        environment: variables beside this process's own.
    """
    command = [
        sys.executable,
        "-m",
        "sparse_pretrain",
        "launch",
        "local",
        "train-tiny",
        "--nproc",
        str(nproc),
    ]
    return subprocess.Popen(
        [*command, "data.path=data", f"output={output}", *overrides],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
