"""The doctor's ranks as real processes, with faults in some of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from launcher.cli_doctor import register
from launcher.doctor.arrival import meeting_folder, read_arrivals
from launcher.doctor.network import measure_all_reduce, measure_pairs
from launcher.environment import free_port
from sparse_pretrain.training.world import World
from tests.distributed import ROOT, run_distributed

MEETING = "test"


@dataclass
class Start:
    """How one rank is started."""

    environment: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT


def examine(
    tmp_path: Path,
    starts: dict[int, Start],
    size: int,
    *options: str,
    run: str | None = None,
    timeout: float = 60.0,
    meanwhile: Callable[[dict[int, subprocess.Popen[bytes]]], None] = lambda _: None,
) -> tuple[int, dict[str, Any], str]:
    """Start ranks of the doctor; return rank 0's exit code (or the lowest one's), the report and all output."""
    out, port = tmp_path / "report.json", str(free_port())
    processes = {}
    for rank, start in starts.items():
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            **start.environment,
        }
        command = [sys.executable, "-m", "launcher.doctor.rank", str(out), run or str(tmp_path / "run")]
        with (tmp_path / f"log-{rank}").open("wb") as log:
            processes[rank] = subprocess.Popen(
                [*command, "--timeout", str(timeout), "--meeting", MEETING, *options],
                cwd=start.folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
    try:
        meanwhile(processes)
        codes = {rank: process.wait(150) for rank, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    printed = "".join((tmp_path / f"log-{rank}").read_text(errors="replace") for rank in starts)
    assert out.is_file(), printed
    return codes[min(codes)], json.loads(out.read_text()), printed


def wrong(report: dict[str, Any], check: str) -> list[tuple[int | None, str]]:
    return [(one["rank"], one["what"]) for one in report["findings"] if one["check"] == check]


def test_faults_of_single_ranks_are_found_together(tmp_path: Path) -> None:
    """One rank with another numpy, one with other sources; each in a folder of its own that it takes for shared."""
    fake = tmp_path / "fake" / "numpy-0.1.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    sources = tmp_path / "sources"
    for name in ("sparse_pretrain", "launcher"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (sources / "sparse_pretrain" / "errors.py").open("a") as file:
        file.write("# changed on one node\n")
    (sources / "data").write_text("only here")
    starts = {
        0: Start(),
        1: Start({"PYTHONPATH": f"{fake.parent}:{ROOT}"}, Path("/proc")),
        2: Start({"PYTHONPATH": str(sources)}, sources),
    }
    # Every process has its own /proc/self/cwd: as machines have their own disks.
    here = "/proc/self/cwd"
    code, report, printed = examine(
        tmp_path, starts, 3, "--path", f"{here}/data", "--seen-seconds", "1", run=f"{here}/.pytest_cache/run"
    )
    shutil.rmtree(ROOT / ".pytest_cache" / "run", ignore_errors=True)
    assert code == 1
    assert not report["ok"]
    assert wrong(report, "versions") == [
        (1, f"numpy 0.1, most ranks have {report['ranks'][0]['versions']['numpy']}")
    ]
    assert [rank for rank, _ in wrong(report, "code")] == [2]
    assert [rank for rank, _ in wrong(report, "paths")] == [0]
    blamed = wrong(report, "run folder")
    assert [rank for rank, _ in blamed] == [1, 0, 1, 2]
    assert "cannot write to" in blamed[0][1]
    assert "does not see" in blamed[1][1]
    assert "wrong: versions: rank 1 on " in printed


def test_a_slow_rank_is_named(tmp_path: Path) -> None:
    """As under a quota: it may run a tenth of the time, from when the ranks have met."""
    over = threading.Event()

    def slow_down(processes: dict[int, subprocess.Popen[bytes]]) -> None:
        folder = meeting_folder(tmp_path / "run", MEETING)

        def joined() -> bool:
            return any(one.rank == 1 and one.stage == "joined" for one in read_arrivals(folder))

        def throttle() -> None:
            while not joined() and not over.is_set():
                time.sleep(0.005)
            while processes[1].poll() is None and not over.is_set():
                processes[1].send_signal(signal.SIGSTOP)
                time.sleep(0.09)
                processes[1].send_signal(signal.SIGCONT)
                time.sleep(0.01)

        threading.Thread(target=throttle, daemon=True).start()

    code, report, _ = examine(tmp_path, {0: Start(), 1: Start()}, 2, meanwhile=slow_down)
    over.set()
    named = [what for rank, what in wrong(report, "speed") if rank == 1]
    assert any("its core is" in what for what in named)
    # Slow is a warning: it is up to the user.
    assert code == 0
    assert report["ok"]
    assert report["numbers"]["all_reduce_seconds"] > 0
    assert not list((tmp_path / "run").rglob("rank-*.json"))
    assert not list((tmp_path / "run").rglob(".probe-*"))


def test_a_rank_that_does_not_come_and_one_that_cannot_load_its_libraries(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file')\n"
    )
    starts = {0: Start(), 2: Start({"PYTHONPATH": f"{broken.parent}:{ROOT}"})}
    code, report, _ = examine(tmp_path, starts, 3, timeout=5)
    assert code == 1
    assert wrong(report, "arrival") == [
        (1, "did not arrive in 5 s"),
        (2, "ImportError: libcudart.so.12: cannot open shared object file"),
    ]


def test_a_port_on_which_nobody_listens(tmp_path: Path) -> None:
    port = str(free_port())
    code, report, _ = examine(tmp_path, {0: Start(), 1: Start({"MASTER_PORT": port})}, 2, timeout=5)
    assert code == 1
    ((rank, what),) = wrong(report, "arrival")
    assert rank == 1
    assert what.startswith(f"wants to meet at 127.0.0.1:{port}, rank 0 waits at 127.0.0.1:")


def test_rank_0_itself_does_not_come(tmp_path: Path) -> None:
    code, report, _ = examine(tmp_path, {1: Start()}, 2, timeout=2)
    assert code == 1
    assert wrong(report, "arrival") == [(0, "did not arrive in 2 s")]


def network(world: World) -> tuple[dict[str, float], dict[tuple[int, int], float]]:
    return measure_all_reduce(world), measure_pairs(world, [(0, 1), (1, 2)])


def test_every_rank_learns_what_was_measured_between_any_two() -> None:
    results = run_distributed(network, 3, timeout=120)
    for numbers, pairs in results:
        assert numbers.keys() == {"all_reduce_seconds", "all_reduce_bytes_per_second"}
        assert pairs.keys() == {(0, 1), (1, 2)}
        assert all(rate > 0 for rate in pairs.values())
    assert results[0][1] == results[1][1] == results[2][1]


@pytest.mark.slow
def test_the_command_checks_this_machine(tmp_path: Path) -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    arguments = ["doctor", "train-tiny", f"output={tmp_path / 'run'}", "--nproc", "2", "--json"]
    missing = CliRunner().invoke(app, [*arguments, f"data.path={tmp_path / 'nowhere'}"])
    assert missing.exit_code == 1, missing.output
    assert missing.stdout, repr(missing.exception)
    report = json.loads(missing.stdout)
    assert wrong(report, "paths") == [(0, f"{tmp_path / 'nowhere'} is not there or not readable")]
    assert json.loads((tmp_path / "run" / "doctor" / "report.json").read_text()) == report
