"""Which cores ranks get on machines that we do not have, and on this one."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.binding import is_placed_by_user, plan_binding
from launcher.environment import find_machine, shared_environment
from launcher.local import launch_ranks
from launcher.topology import Core, find_gpu_nodes, parse_numbers, read_cores, read_pci_node


def sockets(*sizes: int, threads: int = 1) -> list[Core]:
    """A machine with so many cores on each NUMA node; second threads are counted after all first ones, as usual."""
    nodes = [node for node, size in enumerate(sizes) for _ in range(size)]
    total = len(nodes)
    return [
        Core(tuple(number + total * thread for thread in range(threads)), node)
        for number, node in enumerate(nodes)
    ]


def test_two_ranks_on_two_sockets_get_one_each_with_both_threads_of_every_core() -> None:
    assert plan_binding(sockets(2, 2, threads=2), 2) == (frozenset({0, 4, 1, 5}), frozenset({2, 6, 3, 7}))


def test_four_ranks_on_two_sockets_of_uneven_cores_stay_on_one_node_each() -> None:
    assert plan_binding(sockets(7, 7), 4) == tuple(
        map(frozenset, ([0, 1, 2], [3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13]))
    )


def test_one_rank_has_everything() -> None:
    assert plan_binding(sockets(2, 2, threads=2), 1) == (frozenset(range(8)),)


def test_more_ranks_than_cores_are_not_bound() -> None:
    assert plan_binding(sockets(2), 3) == ()
    # Two threads of one core would slow each other down: the kernel may do better.
    assert plan_binding(sockets(2, threads=2), 4) == ()


def test_ranks_get_cores_near_their_gpus() -> None:
    near = plan_binding(sockets(2, 4), 4, homes=(1, 0, 0, 1))
    assert near == (frozenset({2, 3}), frozenset({0}), frozenset({1}), frozenset({4, 5}))


@pytest.mark.parametrize("homes", [(None, None), (0, None), (0, 7), ()])
def test_gpus_whose_place_is_unknown_or_far_from_all_our_cores_mean_even_shares(
    homes: tuple[int | None, ...],
) -> None:
    assert plan_binding(sockets(2, 2), 2, homes) == (frozenset({0, 1}), frozenset({2, 3}))


def test_more_gpus_on_a_node_than_cores_mean_even_shares() -> None:
    assert plan_binding(sockets(1, 3), 2, homes=(0, 0)) == (frozenset({0, 1}), frozenset({2, 3}))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 2),
    st.integers(1, 12),
    st.lists(st.sampled_from([0, 1, 2, None]), max_size=12),
)
def test_shares_are_disjoint_whole_cores_and_without_gpus_even(
    sizes: list[int], threads: int, ranks: int, homes: list[int | None]
) -> None:
    cores = sockets(*sizes, threads=threads)
    binding = plan_binding(cores, ranks, homes if len(homes) >= ranks else ())
    if len(cores) < ranks:
        assert binding == ()
        return
    assert len(binding) == ranks
    assert all(binding)
    assert sum(map(len, binding)) == len(frozenset().union(*binding))
    assert all(
        frozenset(core.threads) & share in (set(), set(core.threads)) for core in cores for share in binding
    )
    if len(homes) < ranks:
        lengths = {len(share) // threads for share in binding}
        assert max(lengths) - min(lengths) <= 1
        assert sum(map(len, binding)) == len(cores) * threads


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_who_places_threads_is_left_alone(name: str) -> None:
    assert is_placed_by_user({name: "0-3"})
    assert not is_placed_by_user({"OMP_NUM_THREADS": "4"})


def test_threads_fit_the_smallest_share() -> None:
    machine = find_machine({"CUDA_VISIBLE_DEVICES": ""})
    binding = plan_binding(sockets(3, threads=2), 2)
    shared = shared_environment({}, 2, 1, machine, Path("/python"), binding)
    assert shared["OMP_NUM_THREADS"] == str(min(2, max(1, machine.cores // 2)))


def describe(system: Path, siblings: dict[int, str], nodes: dict[int, str]) -> Path:
    """Write what the kernel says about a machine."""
    for number, text in siblings.items():
        folder = system / f"cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{text}\n")
    for number, text in nodes.items():
        folder = system / f"node/node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{text}\n")
    return system


def test_cores_are_read_with_their_siblings_and_nodes(tmp_path: Path) -> None:
    siblings = {number: f"{number % 4},{number % 4 + 4}" for number in range(8)}
    # Every other core: nodes need not be in the order of numbers. A node of memory only has no cores.
    system = describe(tmp_path, siblings, {0: "0,2,4,6", 1: "1,3,5,7", 2: ""})
    assert read_cores(range(8), system) == (
        Core((0, 4), 0),
        Core((2, 6), 0),
        Core((1, 5), 1),
        Core((3, 7), 1),
    )
    assert read_cores({5, 6, 2}, system) == (Core((2, 6), 0), Core((5,), 1))


def test_a_machine_that_says_nothing_has_plain_cores(tmp_path: Path) -> None:
    assert read_cores({3, 1}, tmp_path) == (Core((1,)), Core((3,)))


def test_lists_of_numbers() -> None:
    assert parse_numbers("0-2,5\n") == {0, 1, 2, 5}
    assert parse_numbers("\n") == set()


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    for name, node in {"0000:3b:00.0": "1", "0000:af:00.0": "-1"}.items():
        (tmp_path / "pci" / name).mkdir(parents=True)
        (tmp_path / "pci" / name / "numa_node").write_text(f"{node}\n")
    return tmp_path / "pci"


@pytest.mark.parametrize(
    ("address", "node"),
    [
        ("00000000:3B:00.0", 1),
        ("00000000:AF:00.0", None),
        ("00000000:01:00.0", None),
        ("[N/A]", None),
        (None, None),
    ],
)
def test_a_gpus_node_is_read_by_its_pci_address(address: str | None, node: int | None, devices: Path) -> None:
    assert read_pci_node(address, devices) == node


def test_gpus_are_found_by_index_and_by_name(
    devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nvidia-smi prints them; here is none, so a program of that name prints it."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\necho '0, GPU-aa11, 00000000:AF:00.0'\necho '1, GPU-bb22, 00000000:3B:00.0'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert find_gpu_nodes(("1", "GPU-bb", "0", "MIG-7"), devices) == (1, 1, None, None)
    program.write_text("#!/bin/sh\nexit 9\n")
    assert find_gpu_nodes(("0", "1"), devices) == (None, None)
    assert find_gpu_nodes(()) == ()


SHOW = """
import os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(repr(os.sched_getaffinity(0)))
"""


def affinities(folder: Path, ranks: int, bind: bool = True, **environment: str) -> list[set[int]]:
    folder.mkdir()
    command = [sys.executable, "-c", SHOW, str(folder)]
    shown = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    assert launch_ranks(command, ranks, folder / "run", environment=shown, bind=bind) == 0
    return [
        {int(number) for number in (folder / str(rank)).read_text().strip("{}").split(",")}
        for rank in range(ranks)
    ]


def test_ranks_here_do_not_share_cores_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    cores = read_cores(allowed)
    if len(cores) < 2:
        pytest.skip("one core cannot be shared without sharing it")
    one, other = affinities(tmp_path / "bound", 2)
    assert not one & other
    assert one | other == allowed
    assert affinities(tmp_path / "option", 2, bind=False) == [allowed] * 2
    assert affinities(tmp_path / "user", 2, OMP_PROC_BIND="close") == [allowed] * 2
    assert affinities(tmp_path / "many", len(cores) + 1) == [allowed] * (len(cores) + 1)
    # As under taskset: what the user took away stays away.
    os.sched_setaffinity(0, cores[0].threads)
    try:
        assert affinities(tmp_path / "less", 1) == [set(cores[0].threads)]
    finally:
        os.sched_setaffinity(0, allowed)
