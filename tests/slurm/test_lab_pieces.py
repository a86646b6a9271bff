"""What a cluster is written from, without starting one."""

import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.lab.config import gres_conf, hosts_file, slurm_conf
from launcher.lab.lab import user_environment
from launcher.lab.plan import Plan, is_free, read_plan, write_plan
from launcher.lab.processes import descendants
from launcher.lab.scripts import AS_ROOT, node_script
from sparse_pretrain.errors import UserError

PLAN = Plan(
    folder=Path("/lab"),
    user="me",
    controller_host="here",
    nodes=2,
    cpus=4,
    gpus=0,
    port=12_000,
    first_job=1_000,
)
APART = replace(PLAN, network=7)
INSTALL = Path(__file__).resolve().parents[2] / "launcher" / "lab" / "install.sh"


def test_nodes_share_this_machine_and_differ_by_port() -> None:
    lines = [line for line in slurm_conf(PLAN).splitlines() if line.startswith("NodeName=")]
    assert lines == [
        f"NodeName=node{number} NodeAddr=127.0.0.1 NodeHostname=node{number} Port=1200{number} "
        "CPUs=4 RealMemory=4000 State=UNKNOWN"
        for number in (1, 2)
    ]


def test_with_namespaces_nodes_and_controller_have_addresses_of_their_own() -> None:
    assert "SlurmctldHost=here(10.213.7.1)" in slurm_conf(APART)
    assert [APART.address(node) for node in APART.node_names] == ["10.213.7.11", "10.213.7.12"]
    assert hosts_file(APART, "127.0.0.1 localhost\n") == (
        "10.213.7.11 node1\n10.213.7.12 node2\n127.0.0.1 localhost\n"
    )


def test_urgent_jobs_take_nodes_from_main_which_get_time_to_save() -> None:
    main, urgent = (line for line in slurm_conf(PLAN).splitlines() if line.startswith("PartitionName="))
    assert "PartitionName=main Nodes=node1,node2 Default=YES" in main
    assert "PriorityTier=1 GraceTime=30" in main
    assert "PriorityTier=10 PreemptMode=OFF" in urgent
    assert "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE" in slurm_conf(PLAN)


def test_gpus_are_scheduled_only_where_there_are_some() -> None:
    assert gres_conf(PLAN) == ""
    assert "Gres" not in slurm_conf(PLAN)
    some = replace(PLAN, gpus=2)
    assert gres_conf(some) == "AutoDetect=off\nNodeName=node1,node2 Name=gpu File=/dev/tty[0-1]\n"
    assert "Gres=gpu:2" in slurm_conf(some)


@pytest.mark.parametrize("plan", [PLAN, APART])
@pytest.mark.parametrize("isolation", [(), AS_ROOT])
def test_a_nodes_script_is_shell(plan: Plan, isolation: tuple[str, ...]) -> None:
    script = node_script(plan, "node2", isolation)
    assert "slurmd -D -N node2 -f /lab/slurm.conf" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True, timeout=10)


def test_a_plan_is_read_back_and_an_unknown_node_is_refused(tmp_path: Path) -> None:
    plan = replace(APART, folder=tmp_path)
    write_plan(plan)
    assert read_plan(tmp_path) == plan
    with pytest.raises(UserError, match=r"node3: no such node; there are node1, node2"):
        plan.number("node3")


def test_users_do_not_inherit_another_clusters_settings() -> None:
    base = {
        "SLURM_JOB_ID": "7",
        "SBATCH_PARTITION": "gpu",
        "SLURM_CONF": "/etc/slurm.conf",
        "HOME": "/home/me",
    }
    assert user_environment(base, PLAN) == {"SLURM_CONF": "/lab/slurm.conf", "HOME": "/home/me"}


def test_descendants_are_found_through_the_generations() -> None:
    assert descendants(1, {2: 1, 3: 2, 4: 3, 5: 9, 1: 0}) == {2, 3, 4}


def test_a_port_in_use_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not is_free(server.getsockname()[1])


def run_install(tmp_path: Path, programs: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the installation with a PATH of these programs, as a user who is not root."""
    text = INSTALL.read_text().replace('export PATH="$PATH:/usr/sbin:/sbin"\n', "")
    script = tmp_path / "install.sh"
    script.write_text(text)
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "wc"):
        (folder / tool).symlink_to(str(shutil.which(tool)))
    for name, body in ({"id": "echo 1000"} | programs).items():
        (folder / name).write_text(f"#!{shutil.which('sh')}\n{body}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        [str(folder / "bash"), str(script)],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_where_it_may_not_install_it_says_in_one_line_what_would(tmp_path: Path) -> None:
    done = run_install(tmp_path, {"apt-get": "exit 1", "sudo": "exit 1"})
    assert done.returncode == 3
    assert done.stderr == (
        "slurm: not installed, and installing needs root: sudo apt-get install --no-install-recommends "
        "slurmctld slurmd slurm-client munge iproute2\n"
    )


def test_without_apt_it_says_so(tmp_path: Path) -> None:
    done = run_install(tmp_path, {})
    assert done.returncode == 3
    assert "there is no apt-get here" in done.stderr
    assert done.stderr.count("\n") == 1


def test_installed_already_is_silent(tmp_path: Path) -> None:
    done = run_install(tmp_path, dict.fromkeys(("slurmctld", "slurmd", "sbatch", "munged", "ip"), "true"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
