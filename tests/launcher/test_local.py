"""Ranks as real processes: tiny scripts instead of training."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from launcher.environment import Machine
from launcher.local import launch_local, launch_ranks
from sparse_pretrain.errors import UserError

MACHINE = Machine(cores=2)
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(os.environ["FOLDER"])
def arrive():
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    while len(list(folder.glob("pid-*"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], list[str]]:
    """Return a function that makes a rank's command from the body of a script."""

    def make(body: str) -> list[str]:
        path = tmp_path / "rank.py"
        path.write_text(PRELUDE + textwrap.dedent(body))
        return [sys.executable, str(path)]

    return make


def launch(command: list[str], nproc: int, folder: Path, grace: float = 5.0) -> int:
    environment = {**os.environ, "FOLDER": str(folder)}
    return launch_ranks(command, nproc, folder / "run", grace=grace, machine=MACHINE, environment=environment)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def rank_pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid-*") if path.read_text()]


def running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_ranks_run_together_with_their_environment(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(
        """
        arrive()
        keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
        print(json.dumps({key: os.environ[key] for key in keys} | {"group": os.getpgid(0) == os.getpid()}))
        """
    )
    assert launch(command, 2, tmp_path) == 0
    zero = json.loads(capfd.readouterr().out)
    one = json.loads((tmp_path / "run" / "logs" / "rank-1.log").read_text())
    assert (zero["RANK"], zero["LOCAL_RANK"], one["RANK"], one["LOCAL_RANK"]) == ("0", "0", "1", "1")
    assert zero["MASTER_PORT"] == one["MASTER_PORT"]
    assert zero["WORLD_SIZE"] == "2"
    assert zero["OMP_NUM_THREADS"] == "1"
    assert zero["group"]
    assert one["group"]


def test_a_failing_rank_ends_the_others(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(
        """
        arrive()
        if rank == 1:
            print("shard 7 is broken", flush=True)
            sys.exit(3)
        time.sleep(60)
        """
    )
    started = time.monotonic()
    assert launch(command, 3, tmp_path) == 3
    assert time.monotonic() - started < 5
    assert not any(running(pid) for pid in rank_pids(tmp_path))
    shown = capfd.readouterr().err
    assert "rank 1 failed" in shown
    assert "exit code 3; the other ranks were stopped" in shown
    assert "  shard 7 is broken" in shown


def test_a_rank_deaf_to_sigterm_is_killed_with_its_children(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = script(
        """
        if rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            import subprocess
            child = subprocess.Popen(["sleep", "60"])
            (folder / "pid-child").write_text(str(child.pid))
        arrive()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
        """
    )
    started = time.monotonic()
    assert launch(command, 2, tmp_path, grace=0.5) == 128 + signal.SIGKILL
    assert time.monotonic() - started < 5
    wait_until(lambda: not any(running(pid) for pid in rank_pids(tmp_path)), 5)
    assert "rank 1 failed after 0 s: killed by signal 9 (Killed)" in capfd.readouterr().err


@pytest.mark.parametrize("first", [0, 1])
def test_a_users_mistake_is_shown_once_and_leaves_nothing(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str], first: int
) -> None:
    command = script(
        f"""
        arrive()
        time.sleep(0 if rank == {first} else 0.5)
        print("recipe.yaml: steps = -1: must be at least 1", file=sys.stderr)
        sys.exit(2)
        """
    )
    assert launch(command, 2, tmp_path) == 2
    assert capfd.readouterr().err == "recipe.yaml: steps = -1: must be at least 1\n"
    assert not (tmp_path / "run").exists()


def test_a_mistake_that_only_rank_one_sees_is_shown(
    script: Callable[[str], list[str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launcher.local.MISTAKE_SECONDS", 0.3)
    command = script(
        """
        arrive()
        if rank == 1:
            print("/data: not mounted here", file=sys.stderr)
            sys.exit(2)
        time.sleep(60)
        """
    )
    assert launch(command, 2, tmp_path) == 2
    assert capfd.readouterr().err == "/data: not mounted here\n"


def test_a_resumed_run_keeps_its_old_log_and_shows_only_the_new_lines(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run" / "logs" / "rank-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("yesterday\n")
    code = "arrive()\nprint('today', flush=True)\nsys.exit({code} if rank else 0)"
    assert launch(script(code.format(code=5)), 2, tmp_path) == 5
    assert "yesterday" not in capfd.readouterr().err
    assert log.read_text() == "yesterday\ntoday\n"
    assert launch(script(code.format(code=2)), 2, tmp_path) == 2
    assert log.read_text() == "yesterday\ntoday\n"


def test_ranks_that_stopped_and_saved_are_waited_for(
    script: Callable[[str], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 may need longer than the grace period after the others have saved and left."""
    command = script("""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
        arrive()
        time.sleep(0 if rank else 1)
        sys.exit(75)
        """)
    assert launch(command, 2, tmp_path, grace=0.1) == 75
    assert capfd.readouterr().err == ""


def test_sparse_pretrain_itself_is_launched(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch_local(["--version"], 2, tmp_path) == 0
    zero = capfd.readouterr().out
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", zero)
    assert (tmp_path / "logs" / "rank-1.log").read_text() == zero


LAUNCHER = """
import os, sys
from pathlib import Path
from launcher.environment import Machine
from launcher.local import launch_ranks
folder = Path(os.environ["FOLDER"])
sys.exit(launch_ranks(sys.argv[1:], 2, folder / "run", grace=5, machine=Machine(cores=2)))
"""
WAITER = """
def note(number, frame):
    with (folder / f"signals-{rank}").open("a") as handle:
        handle.write(signal.Signals(number).name + " ")
    if number in (signal.SIGTERM, signal.SIGINT):
        time.sleep(0.3 * rank)
        sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, note)
arrive()
(folder / f"ready-{rank}").touch()
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def start_launcher(tmp_path: Path) -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Return a function that starts two ranks by a launcher in its own process; kill it at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        environment = {**os.environ, "FOLDER": str(tmp_path)}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, *command], env=environment, stderr=subprocess.PIPE, text=True
            )
        )
        wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()


def signals_of(folder: Path, rank: int) -> list[str]:
    path = folder / f"signals-{rank}"
    return path.read_text().split() if path.exists() else []


def all_received(folder: Path, count: int) -> bool:
    return all(len(signals_of(folder, rank)) == count for rank in range(2))


def test_signals_reach_every_rank_once_and_a_clean_stop_is_quiet(
    script: Callable[[str], list[str]],
    start_launcher: Callable[[list[str]], subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    launcher = start_launcher(script(WAITER))
    for count, number in enumerate((signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM), start=1):
        launcher.send_signal(number)
        wait_until(partial(all_received, tmp_path, count))
    _, shown = launcher.communicate(timeout=20)
    assert (launcher.returncode, shown) == (0, "")
    for rank in range(2):
        assert signals_of(tmp_path, rank) == ["SIGUSR1", "SIGUSR2", "SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_let_ranks_save(
    script: Callable[[str], list[str]],
    start_launcher: Callable[[list[str]], subprocess.Popen[str]],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    launcher = start_launcher(script(WAITER))
    launcher.send_signal(number)
    launcher.communicate(timeout=20)
    assert launcher.returncode == 0
    received = "SIGTERM" if number is signal.SIGHUP else "SIGINT"
    assert [signals_of(tmp_path, rank) for rank in range(2)] == [[received]] * 2


def test_a_third_sigterm_kills_ranks_that_do_not_end(
    script: Callable[[str], list[str]],
    start_launcher: Callable[[list[str]], subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    deaf = WAITER.replace("time.sleep(0.3 * rank)", "time.sleep(60)")
    launcher = start_launcher(script(deaf))
    launcher.send_signal(signal.SIGTERM)
    time.sleep(2.2)  # sooner, it counts as the same request
    launcher.send_signal(signal.SIGTERM)
    time.sleep(2.2)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    _, shown = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert "SIGTERM again: hurrying" in shown
    assert "SIGTERM for the third time: killing the ranks" in shown
    assert not any(running(pid) for pid in rank_pids(tmp_path))


def test_a_killed_launcher_leaves_no_rank(
    script: Callable[[str], list[str]],
    start_launcher: Callable[[list[str]], subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    launcher = start_launcher(script(WAITER))
    ranks = rank_pids(tmp_path)
    assert len(ranks) == 2
    assert all(running(pid) for pid in ranks)
    launcher.kill()
    launcher.wait(timeout=10)
    wait_until(lambda: not any(running(pid) for pid in ranks), 5)


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nproc = 0"):
        launch(["true"], 0, tmp_path)
    with pytest.raises(UserError, match="no-such-program: no such program"):
        launch(["no-such-program"], 2, tmp_path)
    assert not (tmp_path / "run").exists()
