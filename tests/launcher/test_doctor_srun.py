"""A site's settings as srun takes them."""

import subprocess
from pathlib import Path

import pytest

from launcher.doctor.report import Report
from launcher.doctor.run import with_last_words
from launcher.doctor.srun import on_site, srun_options
from launcher.site import Container, Site, load_site
from sparse_pretrain.errors import UserError
from sparse_pretrain.preflight.findings import Finding

RANK = ["python3", "-m", "rank"]


def test_a_shipped_site_becomes_options_of_srun() -> None:
    site, _ = load_site("gpu-accounts")
    assert srun_options(site, 2, 8) == [
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=12",
        "--gpus-per-node=h100:8",
        "--partition=gpu",
        "--account=nlp-group",
        "--qos=preemptible",
        "--constraint=h100",
        "--exclude=gpu[013-014]",
        "--mem=0",
        "--exclusive",
        "--licenses=scratch",
    ]


def test_more_ranks_than_gpus_are_refused_before_anything_waits() -> None:
    with pytest.raises(UserError, match=r"ranks_per_node = 4 on gpus_per_node = 2"):
        srun_options(Site(gpus_per_node=2, ranks_per_node=2), 1, 4)


def test_without_settings_a_rank_starts_as_it_is() -> None:
    assert on_site(Site(), RANK) == RANK


def test_modules_variables_and_preamble_come_before_the_rank_and_values_are_no_code(tmp_path: Path) -> None:
    hostile = "it's $(touch hacked) `touch hacked` \n\"end"
    site = Site(
        modules=("gcc/13 $(touch hacked)",),
        environment={"GREETING": hostile},
        preamble=("module() { :; }", 'printf "%s" "$LOADED" > modules'),
    )
    line = on_site(
        site, ["bash", "-c", 'printf "%s" "$GREETING" > greeting; printf "%s" "$1" > argument', "x", "a b"]
    )
    define = 'module() { printf -v LOADED "%s" "$2"; export LOADED; }; export -f module; exec "$@"'
    done = subprocess.run(["bash", "-c", define, "bash", *line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {"greeting": hostile, "argument": "a b", "modules": "gcc/13 $(touch hacked)"}


def test_containers() -> None:
    container = Container(kind="apptainer", image="/images/train.sif", mounts=("/data:/data",))
    assert on_site(Site(gpus_per_node=1, container=container), RANK) == [
        *("apptainer", "exec", "--nv", "--bind", "/data:/data", "/images/train.sif"),
        *RANK,
    ]
    pyxis = Site(
        modules=("gcc",), container=Container(kind="pyxis", image="docker://x/y", mounts=("/a:/b", "/c:/d"))
    )
    assert srun_options(pyxis, 1, 1)[-2:] == [
        "--container-image=docker://x/y",
        "--container-mounts=/a:/b,/c:/d",
    ]
    assert on_site(pyxis, RANK) == RANK, "modules of the outside are not in the container"


def test_a_rank_that_did_not_arrive_is_quoted() -> None:
    absent = Finding("arrival", "wrong", "did not arrive in 60 s", "look at its node", 1, "n2")
    other = Finding("arrival", "wrong", "failed", "see its log", 0, "n1")
    said = ["0: hello", "1: first", "srun: error: n2: task 1: Exited with exit code 1", "1: no such module"]
    report = with_last_words(Report((absent, other)), said)
    assert [finding.what for finding in report.findings] == [
        "did not arrive in 60 s; it said: no such module",
        "failed",
    ]
    assert with_last_words(Report((absent,)), []) == Report((absent,))
