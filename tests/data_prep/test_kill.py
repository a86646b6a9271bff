"""Killed at any moment, a preparation continues and ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from data_prep.tokenizer import load_tokenizer
from sparse_pretrain.config.load import load_recipe

KILLS = 20


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_child(work: Callable[[], object], kill_after: float | None) -> int:
    """Run the work in a forked process, kill -9 it after some seconds; return its wait status."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def campaign(raw: Path, tokenizer: Path, place: Path) -> None:
    """Kill a preparation 20 times; after each time that it got through, start from nothing."""
    import data_prep.row_steps
    import data_prep.sources.parts
    import data_prep.worker_imports  # once, instead of in every child

    data_prep.sources.parts.unit_size = lambda *_: 20_000
    data_prep.row_steps.GROUP_TOKENS = 5000
    changes = [
        f"sources.dump.path={raw / 'dump.xml'}",
        f"sources.books.path={raw / 'books'}",
        f"tokenizer={tokenizer}",
    ]

    def run(output: Path) -> Callable[[], object]:
        recipe = load_recipe("data-tiny", [*changes, f"output={output}"], PrepareRecipe)
        return lambda: prepare(recipe, Console(quiet=True))

    load_tokenizer(str(tokenizer))  # imports once what every child would
    began = time.monotonic()
    assert in_child(run(place / "whole"), None) == 0
    duration = time.monotonic() - began
    expected = files(place / "whole")
    draw = random.Random(0)
    output = place / "killed"
    kills = resumed = 0
    while kills < KILLS:
        left = (place / ".killed.work").exists()
        status = in_child(run(output), draw.uniform(0, duration))
        kills += os.WIFSIGNALED(status)
        resumed += left
        if output.exists():
            assert files(output) == expected
            shutil.rmtree(output)
    assert in_child(run(output), None) == 0
    assert files(output) == expected
    assert sorted(path.name for path in place.iterdir()) == ["killed", "whole"]
    assert resumed >= KILLS // 4, f"only {resumed} runs went on where another was killed"
    print(f"same bytes: {resumed} of {kills} kills resumed, a whole run takes {duration:.2f} s")


@pytest.mark.slow
def test_killed_twenty_times_the_bytes_are_the_same(raw: Path, tokenizers: Path, tmp_path: Path) -> None:
    """In a process of its own: a fork of the test's, which holds threads, could hang."""
    command = [
        sys.executable,
        "-m",
        "tests.data_prep.test_kill",
        str(raw),
        str(tokenizers / "bert"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert "same bytes" in done.stdout


if __name__ == "__main__":
    campaign(*(Path(argument) for argument in sys.argv[1:]))
