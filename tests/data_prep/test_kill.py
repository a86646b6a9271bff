"""Killed at any moment, a preparation continues and ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from data_prep.tokenizer import load_tokenizer
from sparse_pretrain.config.load import load_recipe

KILLS = 20
# Every so-manieth run has two workers, which must end with their parent and write nothing into the next run's work.
TWO_WORKERS_EVERY = 5
# Of the changes that a run makes to folders once its output is there, how many it survives.
LAST_STEPS = (0, 1, 2, 4, 8)


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


def dying_late(work: Callable[[], object], output: Path, steps: int) -> Callable[[], object]:
    """Return the work with a kill -9 in its last moments: `steps` changes to folders after its output is there."""

    def watched(function: Callable[..., None]) -> Callable[..., None]:
        def change(*arguments: Any, **options: Any) -> None:
            nonlocal steps
            if output.exists():
                if not steps:
                    os.kill(os.getpid(), signal.SIGKILL)
                steps -= 1
            function(*arguments, **options)

        return change

    def backwards(*arguments: Any) -> Any:
        """List a folder so that results are deleted before the markers that stand for them; any order may be."""
        with scan(*arguments) as entries:
            return nullcontext(sorted(entries, key=lambda entry: entry.name, reverse=True))

    scan = os.scandir

    def run() -> object:
        setattr(os, "scandir", backwards)  # noqa: B010 - mypy
        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, watched(getattr(os, name)))
        return work()

    return run


def campaign(raw: Path, tokenizer: Path, place: Path) -> None:
    """Kill a preparation 20 times, then in its last moments; after each time that it got through, begin anew."""
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

    def run(output: Path, workers: int = 1) -> Callable[[], object]:
        recipe = load_recipe("data-tiny", [*changes, f"output={output}", f"workers={workers}"], PrepareRecipe)
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
        workers = 2 if kills % TWO_WORKERS_EVERY == 0 else 1
        status = in_child(run(output, workers), draw.uniform(0, workers * duration))
        kills += os.WIFSIGNALED(status)
        resumed += left
        if output.exists():
            assert files(output) == expected
            shutil.rmtree(output)
    for steps in LAST_STEPS:
        assert in_child(dying_late(run(output), output, steps), None) == signal.SIGKILL
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
