"""One cluster for all tests; where SLURM is missing they are skipped, in CI they fail."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.lab import Lab, slurm_lab
from launcher.lab.machine import find_isolation, missing_programs
from launcher.lab.scripts import AS_ROOT
from tests.slurm.jobs import cancel_all


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    missing = missing_programs()
    if missing:
        reason = f"not installed: {', '.join(missing)} (launcher/lab/install.sh installs them)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def running_lab(slurm_installed: None) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as folder,
        slurm_lab(Path(folder) / "lab", nodes=3, namespaces=find_isolation() == AS_ROOT) as lab,
    ):
        yield lab


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which the sockets of a cluster have room: pytest's own paths are too long for some."""
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def lab(running_lab: Lab) -> Iterator[Lab]:
    """The cluster, all nodes idle, as the test before may have harmed it."""
    yield running_lab
    cancel_all(running_lab)


@pytest.fixture
def cuttable_lab(lab: Lab) -> Lab:
    if lab.plan.network is None:
        pytest.skip("cutting a node off needs root and network namespaces")
    return lab


@pytest.fixture
def root() -> Path:
    return Path(__file__).resolve().parents[2]
