"""Only the newest start of a run commits, and only one process of a machine writes."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from sparse_pretrain.checkpoint.fence import (
    OWNER,
    Claim,
    SupersededError,
    check_owner,
    claim,
    is_alive,
    locked,
    read_owner,
)
from sparse_pretrain.checkpoint.integrity import newest_whole
from sparse_pretrain.checkpoint.layout import saved_steps, staging_folder, step_folder
from sparse_pretrain.checkpoint.staging import clear_leftovers, commit
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json
from tests.checkpoint.saves import RANKS, Alone, quiet, save, write_save
from tests.distributed import ROOT

# As another machine it would be no process of ours: what is told apart here is two machines sharing a disk.
ELSEWHERE = "another-machine"


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run this module's `main` in a process of its own."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.checkpoint.test_fence", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def main() -> None:
    """Be a start of a run: claim, write a save, and commit it when told; say what happens, a line each."""
    checkpoints, step = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        platform.node = lambda: sys.argv[3]
    mine = claim(checkpoints)
    clear_leftovers(checkpoints)
    files = write_save(checkpoints, step, mine)
    print("written", mine.start, flush=True)
    sys.stdin.readline()
    try:
        commit(checkpoints, step, mine, RANKS, files)
        print("committed", flush=True)
    except SupersededError as error:
        print(f"superseded: {error}", flush=True)


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def tell(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


@pytest.mark.parametrize("step", [10, 20])
def test_a_start_that_was_cut_off_cannot_commit_after_the_next_one(tmp_path: Path, step: int) -> None:
    """A node is lost in the middle of a save, the job goes on elsewhere, and the node comes back.

    Whether the two save the same step or not: what the newer one wrote stays, of the older one nothing.
    """
    with process(tmp_path, 10, ELSEWHERE) as old:
        assert line_of(old) == "written 1"
        old.send_signal(signal.SIGSTOP)
        with process(tmp_path, step) as new:
            assert line_of(new) == "written 2"
            tell(new)
            assert line_of(new) == "committed"
        tell(old)
        old.send_signal(signal.SIGCONT)
        said = line_of(old)
    assert said.startswith(
        f"superseded: {tmp_path}: taken over by start 2 on {platform.node()}; this is start 1"
    )
    assert newest_whole(tmp_path, Alone(), quiet) == (step_folder(tmp_path, step), {})
    assert json.loads((step_folder(tmp_path, step) / "state.json").read_text())["start"] == 2
    assert saved_steps(tmp_path) == [step]
    assert not list(tmp_path.glob(".step-*"))


def test_a_start_is_superseded_from_the_moment_of_the_claim_on(tmp_path: Path) -> None:
    """The newer one has not even saved yet."""
    with process(tmp_path, 10, ELSEWHERE) as old:
        assert line_of(old) == "written 1"
        claim(tmp_path)
        tell(old)
        assert line_of(old).startswith("superseded")
    assert saved_steps(tmp_path) == []


def test_a_second_living_process_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    with process(checkpoints, 10) as other:
        assert line_of(other) == "written 1"
        before = read_owner(checkpoints)
        with pytest.raises(UserError, match=rf"{tmp_path}: process {other.pid} on this machine is training"):
            claim(checkpoints)
        # The first one is not disturbed.
        assert read_owner(checkpoints) == before
        tell(other)
        assert line_of(other) == "committed"
        other.wait(20)
        assert claim(checkpoints).start == 2


def test_a_process_that_was_killed_or_is_a_zombie_is_no_owner(tmp_path: Path) -> None:
    with process(tmp_path, 10) as other:
        assert line_of(other) == "written 1"
        owner = read_owner(tmp_path)
        assert owner is not None
        assert is_alive(owner)
        other.kill()
        # Not waited for: it stays in the table of processes.
        deadline = time.monotonic() + 20
        while psutil.Process(other.pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(owner)
        assert claim(tmp_path).start == 2
    assert not is_alive(owner)
    clear_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def test_another_process_with_the_same_number_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    parent = psutil.Process(os.getppid())
    alive = replace(mine, process=parent.pid, process_started=parent.create_time())
    assert is_alive(alive)
    assert not is_alive(replace(alive, process_started=alive.process_started - 100))
    assert not is_alive(replace(alive, host=ELSEWHERE))
    write_json(tmp_path / OWNER, asdict(replace(alive, process_started=alive.process_started - 100)))
    assert claim(tmp_path).start == 2
    write_json(tmp_path / OWNER, asdict(alive))
    with pytest.raises(UserError, match=f"process {parent.pid}"):
        claim(tmp_path)


def test_the_run_keeps_its_identity_over_starts_and_no_two_starts_are_alike(tmp_path: Path) -> None:
    claims = [claim(tmp_path / "checkpoints") for _ in range(4)]
    assert [one.start for one in claims] == [1, 2, 3, 4]
    assert len({one.run for one in claims}) == 1
    assert len({one.token for one in claims}) == 4
    assert claim(tmp_path / "other").run != claims[0].run
    check_owner(tmp_path / "checkpoints", claims[-1])
    with pytest.raises(SupersededError, match=r"taken over by start 4 on .*; this is start 3"):
        check_owner(tmp_path / "checkpoints", claims[-2])


SOUND = {"run": "a", "start": 1, "token": "b", "host": "c", "process": 7, "process_started": 1.5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[1, 2]",
        b'{"run": "a"}',
        *(json.dumps(SOUND | change).encode() for change in (
            {"more": 1}, {"start": "1"}, {"start": 0}, {"start": True}, {"process": None}, {"process": -3},
            {"process": 1.5}, {"run": None}, {"token": 5}, {"host": None}, {"process_started": "now"},
        )),
    ],
)  # fmt: skip
def test_an_owner_file_that_says_nothing_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / OWNER).write_bytes(content)
    assert read_owner(tmp_path) is None
    mine = claim(tmp_path)
    assert mine.start == 1
    check_owner(tmp_path, mine)


def test_an_owner_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_owner(tmp_path) is None
    (tmp_path / OWNER).write_text(json.dumps(SOUND))
    assert read_owner(tmp_path) == Claim(**SOUND)  # type: ignore[arg-type]
    assert claim(tmp_path).run == "a"


def test_who_lost_the_owner_file_commits_nothing(tmp_path: Path) -> None:
    """Somebody is clearing the folder up, or has replaced it: not ours any more."""
    mine = claim(tmp_path)

    def remove() -> None:
        (tmp_path / OWNER).unlink()

    with pytest.raises(SupersededError, match="someone who removed its owner file"):
        save(tmp_path, 10, mine=mine, between=remove)
    assert saved_steps(tmp_path) == []
    assert staging_folder(tmp_path, 10, mine.start).is_dir()


def test_a_commit_waits_for_a_claim_that_is_being_made(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    files = write_save(tmp_path, 10, mine)
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            committed = pool.submit(commit, tmp_path, 10, mine, RANKS, files)
            time.sleep(0.2)
            assert not committed.done()
            assert saved_steps(tmp_path) == []
        assert committed.result(20)[0] == step_folder(tmp_path, 10)


def test_many_starts_at_once_on_one_machine_have_one_winner(tmp_path: Path) -> None:
    """All but one are refused: the others see a living process."""
    code = (
        "import sys, time; from pathlib import Path; from sparse_pretrain.checkpoint.fence import claim\n"
        "try:\n    print(claim(Path(sys.argv[1])).start, flush=True); sys.stdin.read()\n"
        "except Exception as error:\n    print(type(error).__name__, flush=True)"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    try:
        assert sorted(map(line_of, starts)) == ["1", *["UserError"] * 4]
    finally:
        for start in starts:
            start.kill()
            start.communicate()


if __name__ == "__main__":
    main()
