"""`sbatch --test-only` takes every script that we ship, and that of every example site, as it stands."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.lab import Lab
from launcher.lab.lab import prepare
from sparse_pretrain.errors import FailedError
from tests.launcher.test_render import RENDERED, ROOT

SCRIPTS = [ROOT / "slurm" / "train.sbatch", *sorted(RENDERED.glob("*.sbatch"))]
# What the example sites ask for: GPUs of a type, a feature, room; nodes to leave out, partitions, a license.
NODE = "CPUs=96 RealMemory=131072 Gres=gpu:h100:8 Feature=h100 State=UNKNOWN"
MORE = """
Licenses=scratch:1
NodeName=gpu[013-014] NodeAddr=127.0.0.1 NodeHostname=gpu[013-014] Port=1 CPUs=96 State=DOWN
PartitionName=gpu Nodes=ALL State=UP
PartitionName=batch Nodes=ALL State=UP
"""


@pytest.fixture(scope="module")
def sites_lab(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cluster such as the example sites describe; it judges jobs, it need not run them."""
    read_end, write_end = os.pipe()
    try:
        folder = tmp_path_factory.mktemp("sites")
        lab = prepare(folder, nodes=2, cpus=96, namespaces=False, gpus=8, leash=read_end)
        rewrite(lab.plan.configuration, r"CPUs=96 RealMemory=\d+ Gres=gpu:8 State=UNKNOWN", NODE)
        rewrite(lab.plan.configuration, r"\Z", MORE)
        rewrite(folder / "gres.conf", "Name=gpu ", "Name=gpu Type=h100 ")
        try:
            lab.start()
            yield lab
        finally:
            lab.down()
    finally:
        os.close(write_end)
        os.close(read_end)


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count > 0, f"{path}: no {pattern}"
    path.write_text(text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_sbatch_accepts(script: Path, sites_lab: Lab) -> None:
    sites_lab.run("sbatch", "--test-only", str(script))
    assert sites_lab.run("squeue", "--noheader") == ""


def test_sbatch_would_have_said_no(sites_lab: Lab) -> None:
    """This cluster does judge what scripts ask for."""
    script = str(RENDERED / "gpu-accounts.sbatch")
    for option in (
        "--partition=other",
        "--constraint=a100",
        "--gpus-per-node=9",
        "--licenses=other",
        "--mem=256G",
    ):
        with pytest.raises(FailedError, match=r"allocation failure|invalid|Invalid"):
            sites_lab.run("sbatch", "--test-only", option, script)
