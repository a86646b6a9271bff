"""What launcher/setup.sh says when the machine lacks something; CI itself proves that it works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "dirname", "grep", "tail", "rm", "touch", "uname")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a checkout with the script and its pins, and nothing to install."""
    (tmp_path / "launcher").mkdir()
    shutil.copy(ROOT / "launcher" / "setup.sh", tmp_path / "launcher")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    return tmp_path


def run_setup(checkout: Path, programs: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    """Run the script with a PATH of the basic tools and `programs` only."""
    bin_folder = checkout / "bin"
    bin_folder.mkdir()
    for tool in TOOLS:
        (bin_folder / tool).symlink_to(str(shutil.which(tool)))
    for name, program in programs.items():
        (bin_folder / name).symlink_to(program)
    environment = {key: value for key, value in os.environ.items() if key not in ("PATH", "PYTHON")}
    return subprocess.run(
        [str(bin_folder / "bash"), str(checkout / "launcher" / "setup.sh")],
        env=environment | {"PATH": str(bin_folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def program(path: Path, text: str) -> Path:
    """Write an executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_old_python_is_named(checkout: Path) -> None:
    old = program(checkout / "old-python", 'test "$1" = --version && echo Python 3.8.10; exit 1')
    result = run_setup(checkout, {"python3": old})
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer" in result.stderr
    assert "Python 3.8.10" in result.stderr
    assert not (checkout / ".venv").exists()


def test_failed_installation_leaves_no_stamp_and_is_repaired(checkout: Path) -> None:
    """The stamp of an earlier set-up goes first, a venv without pip is made anew, pip's words are shown."""
    broken = checkout / ".venv"
    (broken / "bin").mkdir(parents=True)
    (broken / ".ready").touch()
    (broken / "pyvenv.cfg").touch()
    fake_python = program(
        checkout / "fake-python",
        f'for word; do test "$word" = install && {{ echo the index is away; exit 1; }}; done\n'
        f'test "$2" != venv || {{ mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit 0; }}\n'
        f'exec {Path(sys.executable).resolve()} "$@"',
    )
    tools = {name: Path(str(shutil.which(name))) for name in ("mkdir", "cp")}
    result = run_setup(checkout, {"python3": fake_python, **tools})
    assert result.returncode == 2, result.stderr
    assert "making it anew" in result.stdout
    assert "the index is away" in result.stderr
    assert "pip could not install" in result.stderr
    assert not (broken / ".ready").exists()
