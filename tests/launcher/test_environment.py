"""What ranks find in their environment."""

import os
from pathlib import Path

import pytest

from launcher.environment import (
    Machine,
    find_machine,
    rank_environment,
    shared_environment,
    visible_gpus,
)
from sparse_pretrain.errors import UserError

PYTHON = Path("/opt/env/bin/python")


def shared(base: dict[str, str], nproc: int = 2, **machine: object) -> dict[str, str]:
    here = Machine(**({"cores": 8} | machine))  # type: ignore[arg-type]
    return shared_environment(base, nproc, 29501, here, PYTHON)


def test_rendezvous_and_ranks() -> None:
    environment = rank_environment(shared({"HOME": "/h"}, nproc=4), 3)
    expected = {
        "HOME": "/h",
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29501",
        "OMP_NUM_THREADS": "2",
    }
    assert environment.items() >= expected.items()


def test_interpreters_folder_comes_first_on_path() -> None:
    assert shared({"PATH": "/usr/bin"})["PATH"] == f"/opt/env/bin{os.pathsep}/usr/bin"


@pytest.mark.parametrize(("cores", "nproc", "threads"), [(8, 2, "4"), (7, 2, "3"), (2, 4, "1"), (1, 1, "1")])
def test_cores_are_divided(cores: int, nproc: int, threads: str) -> None:
    assert shared({}, nproc, cores=cores)["OMP_NUM_THREADS"] == threads


def test_what_the_user_set_stays() -> None:
    base = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth1"}
    assert shared(base, loopback="lo").items() >= base.items()


def test_loopback_is_used_between_ranks() -> None:
    assert shared({}, loopback="lo")["GLOO_SOCKET_IFNAME"] == "lo"
    assert "GLOO_SOCKET_IFNAME" not in shared({})


def test_other_launchers_leave_nothing() -> None:
    base = {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_SIZE": "2", "GROUP_RANK": "1", "MASTER_PORT": "1"}
    environment = shared(base)
    assert not {"TORCHELASTIC_USE_AGENT_STORE", "LOCAL_SIZE", "GROUP_RANK"} & environment.keys()
    assert environment["MASTER_PORT"] == "29501"


def test_ranks_share_the_first_gpus_and_too_many_ranks_are_refused() -> None:
    assert shared({}, 2, gpus=("4", "5", "6"))["CUDA_VISIBLE_DEVICES"] == "4,5"
    with pytest.raises(UserError, match=r"nproc = 4: this machine shows 3 GPU"):
        shared({}, 4, gpus=("4", "5", "6"))


@pytest.mark.parametrize(
    ("shown", "gpus"),
    [("2, 3", ("2", "3")), ("", ()), ("-1", ()), ("0,-1,1", ("0",)), ("GPU-ab", ("GPU-ab",))],
)
def test_gpus_the_user_shows(shown: str, gpus: tuple[str, ...]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": shown}) == gpus


def test_this_machine_has_cores() -> None:
    assert 1 <= find_machine().cores <= (os.cpu_count() or 1)
