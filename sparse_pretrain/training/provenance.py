"""Where a run came from: versions, commit, command, data, hardware. No environment variables: they hold secrets."""

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from sparse_pretrain import __version__

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the libraries that results depend on."""
    return {
        "sparse-pretrain": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def provenance(data_fingerprint: str, world_size: int, precision: str) -> dict[str, Any]:
    """Return what `provenance.json` of a run folder holds."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": versions(),
        "git_commit": git_commit(),
        "data_fingerprint": data_fingerprint,
        "world_size": world_size,
        "precision": precision,
        "hardware": {
            "host": platform.node(),
            "cpu_cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
    }


def git_commit() -> str | None:
    """Return the checkout's commit, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
