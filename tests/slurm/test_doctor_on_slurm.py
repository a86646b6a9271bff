"""`launch doctor` on a real cluster with one wrong node: it must be named, with what is wrong there."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.doctor.arrival import FOLDER, read_arrivals
from launcher.doctor.report import Report
from launcher.doctor.run import examine_nodes
from launcher.lab import Lab
from launcher.lab.processes import command_line
from launcher.site import Site
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.preflight.findings import Finding
from tests.preflight.faults import fake_package
from tests.slurm.jobs import tasks
from tests.tiny import tiny_prepared

WRONG_NODE = "node2"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--nodelist=node1,node2")
THREE_NODES = ("--nodes=3", "--ntasks-per-node=1")


@pytest.fixture
def recipe(tmp_path: Path) -> TrainRecipe:
    tiny_prepared(tmp_path / "data")
    settings = [f"data.path={tmp_path / 'data'}", f"output={tmp_path / 'run'}"]
    return load_recipe("train-tiny", settings, TrainRecipe)


def examine(
    lab: Lab, recipe: TrainRecipe, options: tuple[str, ...], timeout: float = 60.0, site: Site | None = None
) -> Report:
    return examine_nodes(recipe, site or Site(), options, timeout, lab.environment | {"OMP_NUM_THREADS": "1"})


def wrong(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.level == "wrong"]


def on_node(lab: Lab, node: str, *command: str) -> None:
    """Run a command in a node's own mounts and network."""
    daemon = next(process for process in lab.processes(node) if command_line(process)[:1] == ["slurmd"])
    enter = ["nsenter", f"--target={daemon}", "--mount", "--net"]
    subprocess.run([*enter, *command], check=True, capture_output=True, timeout=20)


@contextmanager
def mounted(lab: Lab, node: str, source: Path, target: Path, *options: str) -> Iterator[None]:
    """Put a folder in the place of another one, on one node only."""
    on_node(lab, node, "mount", "--bind", str(source), str(target))
    try:
        if options:
            on_node(lab, node, "mount", *options, str(target))
        yield
    finally:
        on_node(lab, node, "umount", str(target))


def test_well_nodes_by_the_command_with_a_site(
    cuttable_lab: Lab, recipe: TrainRecipe, tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("partition: main\nnodes: 2\nranks_per_node: 1\nexclude: [node1]\n")
    command = [sys.executable, "-m", "sparse_pretrain", "launch", "doctor", "train-tiny", "--site", str(site)]
    done = subprocess.run(
        [*command, "--json", f"data.path={recipe.data.path}", f"output={recipe.output}"],
        env=cuttable_lab.environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    # This machine is shared with whatever else runs on it: speed is no matter of ours here.
    assert [one for one in report["findings"] if one["check"] not in ("speed", "network")] == []
    assert [row["host"] for row in report["ranks"]] == ["node2", "node3"]


def test_another_version_on_one_node(
    cuttable_lab: Lab, recipe: TrainRecipe, tmp_path: Path, root: Path
) -> None:
    fake = fake_package(tmp_path / "fake", "transformers", "0.1")
    packages = tmp_path / "packages"
    packages.mkdir()
    cuttable_lab = replace(
        cuttable_lab, environment=cuttable_lab.environment | {"PYTHONPATH": f"{packages}:{root}"}
    )
    with mounted(cuttable_lab, WRONG_NODE, fake, packages):
        report = examine(cuttable_lab, recipe, TWO_NODES)
    (found,) = wrong(report)
    assert (found.check, found.rank, found.host) == ("versions", 1, WRONG_NODE)
    assert found.what.startswith("transformers 0.1, most ranks have ")


def test_a_run_folder_that_one_node_cannot_write(cuttable_lab: Lab, recipe: TrainRecipe) -> None:
    recipe.output.mkdir()
    with mounted(cuttable_lab, WRONG_NODE, recipe.output, recipe.output, "-o", "remount,ro,bind"):
        report = examine(cuttable_lab, recipe, TWO_NODES)
    (found,) = wrong(report)
    assert (found.check, found.rank, found.host) == ("run folder", 1, WRONG_NODE)
    assert found.what == f"cannot write to {recipe.output}: Read-only file system"


@pytest.mark.slow
def test_a_port_that_is_blocked_from_one_node(cuttable_lab: Lab, recipe: TrainRecipe) -> None:
    rule = ("ipproto", "tcp", "dport", "20000-32000", "blackhole")
    on_node(cuttable_lab, WRONG_NODE, "ip", "rule", "add", *rule)
    try:
        report = examine(cuttable_lab, recipe, TWO_NODES, timeout=10)
    finally:
        on_node(cuttable_lab, WRONG_NODE, "ip", "rule", "delete", *rule)
    (found,) = wrong(report)
    assert (found.check, found.rank, found.host) == ("arrival", 1, WRONG_NODE)
    assert found.what.startswith("cannot connect to node1:")


@pytest.mark.slow
def test_a_node_with_a_hundredth_of_the_network(cuttable_lab: Lab, recipe: TrainRecipe) -> None:
    limit = ("tbf", "rate", "24mbit", "burst", "32kbit", "latency", "400ms")
    on_node(cuttable_lab, WRONG_NODE, "tc", "qdisc", "add", "dev", "eth0", "root", *limit)
    try:
        report = examine(cuttable_lab, recipe, THREE_NODES)
    finally:
        on_node(cuttable_lab, WRONG_NODE, "tc", "qdisc", "delete", "dev", "eth0", "root")
    (found,) = [one for one in report.findings if one.check == "network"]
    assert found.host == WRONG_NODE, found.line()
    assert "with any other machine" in found.what


def test_a_module_that_is_missing_on_one_node(cuttable_lab: Lab, recipe: TrainRecipe) -> None:
    """What the site says of modules, variables and further lines happens on each node, before the rank."""
    site = Site(
        environment={"GREETING": "it's $HOME"},
        preamble=(
            'test "$GREETING" = "it\'s \\$HOME"',
            f'if [ "$SLURMD_NODENAME" = {WRONG_NODE} ]; then echo "cuda/99: no such module" >&2; exit 1; fi',
        ),
    )
    report = examine(cuttable_lab, recipe, TWO_NODES, timeout=3, site=site)
    (found,) = report.findings
    assert (found.check, found.rank, found.host) == ("arrival", 1, WRONG_NODE)
    assert found.what == "did not arrive in 3 s; it said: cuda/99: no such module"


@contextmanager
def processor_quota(share: float) -> Iterator[Path]:
    """Make a control group that may use so much of a core; yield the file that takes processes."""
    groups = Path("/sys/fs/cgroup/cpu")
    group = groups / f"doctor-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(str(round(100_000 * share)))
    except OSError as error:
        pytest.skip(f"no CPU quotas here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        for process in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (groups / "cgroup.procs").write_text(process)
        group.rmdir()


@contextmanager
def slow_ranks(lab: Lab, node: str, begin: Callable[[], bool]) -> Iterator[None]:
    """Give a node's ranks a hundredth of a core, from when `begin` says so."""
    over = threading.Event()

    def slow_down(processes: Path) -> None:
        while not over.wait(0.02):
            for process in tasks(lab, node) if begin() else []:
                with suppress(OSError):
                    processes.write_text(str(process))

    with processor_quota(0.01) as processes:
        thread = threading.Thread(target=slow_down, args=[processes])
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("node", "rank"), [("node1", 0), ("node2", 1)])
def test_a_node_that_is_too_slow_to_meet_the_others(
    cuttable_lab: Lab, recipe: TrainRecipe, node: str, rank: int
) -> None:
    with slow_ranks(cuttable_lab, node, lambda: True):
        report = examine(cuttable_lab, recipe, TWO_NODES, timeout=5)
    (found,) = report.findings
    assert (found.check, found.level, found.rank, found.host) == ("arrival", "wrong", rank, node)


@pytest.mark.slow
def test_a_node_with_a_hundredth_of_a_core(cuttable_lab: Lab, recipe: TrainRecipe) -> None:
    def met() -> bool:
        arrived = [
            one for folder in (recipe.output / FOLDER).glob("meeting-*") for one in read_arrivals(folder)
        ]
        return any(one.host == WRONG_NODE and one.stage == "joined" for one in arrived)

    with slow_ranks(cuttable_lab, WRONG_NODE, met):
        report = examine(cuttable_lab, recipe, TWO_NODES)
    assert wrong(report) == []
    assert any(
        one.host == WRONG_NODE and one.check == "speed" and "its core is" in one.what
        for one in report.findings
    ), report.findings


@pytest.mark.slow
def test_a_training_whose_ranks_do_not_fit_together_ends_before_step_0(
    cuttable_lab: Lab, recipe: TrainRecipe
) -> None:
    recipe.output.mkdir()
    command = [sys.executable, "-m", "sparse_pretrain", "train", "train-tiny"]
    meeting = {"MASTER_ADDR": "node1", "MASTER_PORT": "19999", "OMP_NUM_THREADS": "1"}
    with mounted(cuttable_lab, WRONG_NODE, recipe.output, recipe.output, "-o", "remount,ro,bind"):
        done = subprocess.run(
            ["srun", *TWO_NODES, *command, f"data.path={recipe.data.path}", f"output={recipe.output}"],
            env=cuttable_lab.environment | meeting,
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        f"wrong: run folder: rank 1 on {WRONG_NODE}: cannot write to {recipe.output}: Read-only file system; "
        "make it writable there, or choose another output"
    ]
    assert [path for path in recipe.output.rglob("*") if not path.is_dir()] == []
