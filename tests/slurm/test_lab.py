"""The cluster itself: it runs jobs, its nodes can be lost and found, and it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from launcher.lab import Lab, slurm_lab
from launcher.lab.__main__ import main
from launcher.lab.machine import find_isolation
from launcher.lab.network import run_ip
from launcher.lab.processes import PROC, command_line
from launcher.lab.scripts import AS_ROOT, bridge, link
from sparse_pretrain.errors import UserError
from tests.slurm.jobs import submit, text

ROOT = Path(__file__).resolve().parents[2]

# Starts a cluster and a job, says so, and waits to be interrupted.
HOLD = """
import signal, sys, time
from pathlib import Path
from launcher.lab import slurm_lab
from launcher.lab.processes import command_line
# A job in a shell's background ignores it from birth.
signal.signal(signal.SIGINT, signal.default_int_handler)
with slurm_lab(Path(sys.argv[1]), nodes=1, namespaces=sys.argv[2] == "True") as lab:
    lab.run("sbatch", "--output=/dev/null", "--wrap", "srun sleep 1000")
    runs = lambda: any(command_line(process)[1:] == ["1000"] for process in lab.processes("node1"))
    lab.wait_for(runs, 30, "the job")
    print(lab.plan.network, flush=True)
    time.sleep(60)
"""

AS_USER = """
import sys
from pathlib import Path
from launcher.lab import slurm_lab
with slurm_lab(Path(sys.argv[1])) as lab:
    print(lab.run("srun", "--nodes=2", "sh", "-c", "id -u; getent hosts node2 >&2"))
"""


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that were started for a cluster or work inside its folder."""
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            surroundings = (entry / "environ").read_bytes() + os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue
        command = " ".join(command_line(int(entry.name)))
        if int(entry.name) != os.getpid() and (os.fsencode(folder) in surroundings or str(folder) in command):
            found.append(command)
    return found


def test_a_job_runs_on_two_nodes_that_know_their_names(lab: Lab) -> None:
    names = lab.run("srun", "--nodes=2", "hostname").split()
    assert len(set(names)) == 2
    assert lab.run("srun", "--nodes=1", "sh", "-c", 'getent hosts node2 | cut -d " " -f 1').split() == [
        lab.plan.address("node2")
    ]


@pytest.mark.slow
def test_a_killed_node_goes_down_and_its_job_starts_again(lab: Lab, tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(
        *(lab, "--nodes=3", "--requeue", "--open-mode=append", f"--output={output}"),
        "--wrap=echo start $SLURM_RESTART_COUNT; srun sleep 1000",
    )
    job.wait_for("RUNNING")
    lab.wait_for(lambda: len(lab.processes("node2")) > 2, 20, "the step on node2")
    lab.kill_node("node2")
    assert lab.processes("node2") == set()
    # SLURM finds out by itself, and gives the job back to the queue.
    lab.wait_for(lambda: lab.node_states()["node2"].startswith("down"), 150, "node2 down")
    job.wait_for("PENDING", seconds=120)
    lab.revive_node("node2")
    job.wait_for("RUNNING", seconds=120)
    lab.wait_for(lambda: text(output).count("start") == 2, 20, "the second start")
    assert job.restarts == 1


def test_a_node_that_was_cut_off_works_on_and_comes_back(cuttable_lab: Lab, tmp_path: Path) -> None:
    lab = cuttable_lab
    ticks = tmp_path / "ticks"
    job = submit(
        *(lab, "--nodes=1", "--nodelist=node3", "--no-requeue", "--output=/dev/null"),
        f"--wrap=while true; do echo tick >> {ticks}; sleep 0.05; done",
    )
    job.wait_for("RUNNING")
    lab.cut_off("node3")
    time.sleep(0.2)
    before = text(ticks)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            ["srun", "--nodelist=node3", "--overlap", f"--jobid={job.number}", "hostname"],
            env=lab.environment,
            timeout=1,
            capture_output=True,
            check=False,
        )
    assert len(text(ticks)) > len(before)
    lab.heal("node3")
    assert lab.run("srun", "--nodelist=node3", "hostname").strip() == "node3"


def test_two_clusters_at_once_do_not_meet(lab: Lab, short_path: Path) -> None:
    with slurm_lab(short_path / "other", nodes=1, gpus=2) as other:
        assert other.nodes == ("node1",)
        job = submit(other, "--gres=gpu:2", "--output=/dev/null", "--wrap=true")
        assert lab.run("squeue", "--noheader") == ""
        assert job.wait_for("COMPLETED") == "COMPLETED"
        assert other.run("srun", "--gres=gpu:1", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0"
    assert processes_of(short_path / "other") == []
    assert lab.run("srun", "hostname").strip() in lab.nodes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_the_one_who_started_it_is_interrupted(
    slurm_installed: None, number: signal.Signals, short_path: Path
) -> None:
    namespaces = find_isolation() == AS_ROOT
    folder = short_path / "lab"
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(namespaces)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert owner.stdout
    network = owner.stdout.readline().strip()
    assert any("sleep 1000" in command for command in processes_of(folder))
    owner.send_signal(number)
    owner.wait(20)
    deadline = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(folder) == []
    assert str(folder) not in Path("/proc/mounts").read_text()
    if namespaces:
        for name in (bridge(int(network)), link(int(network), 1)):
            assert "does not exist" in run_ip("link", "show", name).stderr


def test_the_command_says_how_to_use_a_cluster_and_ends_it(
    slurm_installed: None, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = short_path / "lab"
    try:
        began = time.monotonic()
        assert main(["up", str(folder), "--nodes=2"]) == 0
        assert time.monotonic() - began < 20  # 0.6 s on a quiet machine
        shown = capsys.readouterr().out
        export, *tries = [line.strip() for line in shown.splitlines() if line.startswith("  ")]
        assert export == f"export SLURM_CONF={folder}/slurm.conf"
        for command in tries:
            done = subprocess.run(
                ["sh", "-c", f"{export}; {command}"], capture_output=True, text=True, timeout=30, check=True
            )
            assert "node" in done.stdout
        assert main(["up", str(folder)]) == 2
        assert "a cluster is up here; take it down" in capsys.readouterr().err
        assert main(["status", str(folder)]) == 0
        assert "node[1-2]" in capsys.readouterr().out
    finally:
        assert main(["down", str(folder)]) == 0
    assert processes_of(folder) == []
    assert main(["down", str(folder)]) == 2
    assert "no cluster is up here" in capsys.readouterr().err


def test_mistakes_are_told_before_anything_is_started(slurm_installed: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nodes = 0: must be between 1 and 64"), slurm_lab(tmp_path, nodes=0):
        pass
    with pytest.raises(UserError, match="a path without spaces"), slurm_lab(tmp_path / "a b"):
        pass
    with pytest.raises(UserError, match="at most 70 characters"), slurm_lab(tmp_path / ("x" * 70)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_ordinary_user_can_run_one(slurm_installed: None) -> None:
    if os.getuid() != 0:
        pytest.skip("not root, so every other test shows it")
    as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # Twice, as the first one still gets past a closed folder.
    works = "import launcher.lab, subprocess, sys; subprocess.check_call([sys.executable, '-c', ''])"
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [*as_nobody, python, "-c", works]
        if subprocess.run(probe, env=environment, capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("no Python here that both reads this checkout and is open to other users")
    # Not below pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        folder = Path(name) / "lab"
        done = subprocess.run(
            [*as_nobody, python, "-c", AS_USER, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.split() == ["65534", "65534"], done.stderr
        assert processes_of(folder) == []
