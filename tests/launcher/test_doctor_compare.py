"""The facts of several ranks beside each other, fault by fault."""

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.doctor.arrival import Arrival, missing_findings, planned_hosts
from launcher.doctor.network import pairs_to_measure, slow_network
from launcher.doctor.rank import find_meeting, find_place
from launcher.doctor.report import Report, render, report_from_json
from launcher.doctor.speed import Speed, slow_ranks
from sparse_pretrain.preflight.compare import compare
from sparse_pretrain.preflight.facts import RankFacts
from sparse_pretrain.preflight.findings import Finding
from sparse_pretrain.preflight.gpu import GpuFacts, parse_gpus

RUN = Path("/shared/run")
GPU = GpuFacts(0, "NVIDIA H100", "550.1", 0, 5 * 2**20, 80 * 2**30, 40, False)


def ranks(count: int = 4) -> list[RankFacts]:
    """Ranks that are well, two on a machine."""
    return [
        RankFacts(
            rank=rank,
            host=f"node{rank // 2}",
            versions={"python": "3.11.7", "torch": "2.13.0"},
            commit="a" * 40,
            code="feedbeef",
            free_bytes=10**12,
            clock=1000.0,
        )
        for rank in range(count)
    ]


def findings(changed: int | None = None, **changes: object) -> list[Finding]:
    facts = ranks()
    if changed is not None:
        facts[changed] = replace(facts[changed], **changes)  # type: ignore[arg-type]
    return compare(facts, RUN)


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    assert "\n" not in finding.line()
    assert finding.advice
    return finding


def test_well_ranks_have_no_findings() -> None:
    assert findings() == []


def test_another_version_is_named_with_rank_and_host() -> None:
    found = only(findings(3, versions={"python": "3.11.7", "torch": "2.12.0"}))
    assert (found.check, found.level, found.rank, found.host) == ("versions", "wrong", 3, "node1")
    assert found.what == "torch 2.12.0, most ranks have 2.13.0"


def test_a_package_that_is_missing_on_one_rank() -> None:
    assert "torch missing" in only(findings(0, versions={"python": "3.11.7"})).what


def test_of_two_ranks_the_first_is_the_measure() -> None:
    facts = ranks(2)
    facts[1] = replace(facts[1], versions={"python": "3.12.1", "torch": "2.13.0"})
    assert only(compare(facts, RUN)).rank == 1


def test_other_sources() -> None:
    found = only(findings(2, code="0123", commit="b" * 40 + "+changes"))
    assert "commit bbbbbbbbbbbb+changes, most ranks commit aaaaaaaaaaaa" in found.what


def test_a_path_that_a_machine_does_not_see_is_told_once_a_machine() -> None:
    facts = [replace(one, hidden=("/data/x",)) if one.host == "node1" else one for one in ranks()]
    found = only(compare(facts, RUN))
    assert (found.rank, found.host) == (2, "node1")
    assert "/data/x" in found.what


def test_a_run_folder_that_is_not_shared() -> None:
    found = only(findings(3, unseen=(0, 1)))
    assert found.what == "does not see in /shared/run what rank 0 (node0), 1 (node0) wrote"


def test_who_cannot_write_is_not_also_unseen() -> None:
    facts = [replace(one, unseen=(1,)) for one in ranks()]
    facts[1] = replace(facts[1], unseen=(), write_problem="Read-only file system")
    found = only(compare(facts, RUN))
    assert (found.rank, found.check) == (1, "run folder")


def test_a_clock_that_is_off_and_a_disk_that_is_nearly_full_are_warnings() -> None:
    assert only(findings(2, clock=1030.0)).what == "its clock is +30.0 s off"
    found = only(findings(0, free_bytes=10**9))
    assert (found.check, found.level) == ("space", "warning")
    assert Report((found,)).ok


def speeds(count: int) -> list[Speed]:
    """Ranks that are equally fast, two on a machine."""
    return [Speed(rank, f"node{rank // 2}", 1e7, 1e10) for rank in range(count)]


@pytest.mark.parametrize(("name", "rate"), [("core_rate", 4e6), ("memory_rate", 4e9)])
def test_a_slow_rank_is_named(name: str, rate: float) -> None:
    all_speeds = speeds(4)
    all_speeds[1] = replace(all_speeds[1], **{name: rate})
    found = only(slow_ranks(all_speeds))
    assert (found.rank, found.host) == (1, "node0")
    assert "2.5 times slower than the median" in found.what


def test_the_slower_of_two_ranks_is_not_its_own_measure() -> None:
    first, second = speeds(2)
    assert only(slow_ranks([replace(first, core_rate=4e6), second])).rank == 0
    assert slow_ranks([first, second]) == []


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"uncorrected": 3}, "wrong", "GPU 0: 3 uncorrected memory errors"),
        ({"throttled": True}, "warning", "GPU 0: slowed down by heat or power (40 degrees C)"),
        ({"used_bytes": 30 * 10**9}, "warning", "GPU 0: 30.0 GB of its memory are in use by others"),
        ({"name": "NVIDIA A100"}, "warning", "GPU 0: is a NVIDIA A100, most are NVIDIA H100"),
    ],
)
def test_an_ill_gpu(changes: dict[str, object], level: str, what: str) -> None:
    facts = [replace(one, gpus=(GPU, GPU)) if one.rank % 2 == 0 else one for one in ranks()]
    facts[2] = replace(facts[2], gpus=(replace(GPU, **changes), GPU))  # type: ignore[arg-type]
    found = only(compare(facts, RUN))
    assert (found.level, found.what, found.host) == (level, what, "node1")


def test_within_a_training_its_own_gpu_memory_is_no_finding() -> None:
    facts = ranks()
    facts[0] = replace(facts[0], gpus=(replace(GPU, used_bytes=70 * 10**9),))
    assert compare(facts, RUN, used_by_us=True) == []


def test_a_job_that_starts_again_after_a_memory_error_is_only_warned() -> None:
    facts = ranks()
    facts[0] = replace(facts[0], gpus=(replace(GPU, uncorrected=1),))
    assert only(compare(facts, RUN, used_by_us=True)).level == "warning"


def test_reading_nvidia_smi() -> None:
    text = (
        "0, NVIDIA H100 80GB HBM3, 550.54.15, 0, 4, 81559, 31, Not Active, Not Active\n"
        "1, NVIDIA H100 80GB HBM3, 550.54.15, 2, 71000, 81559, 88, Not Active, Active\n"
        "2, NVIDIA GeForce RTX 3090, 550.54.15, [N/A], 1, 24576, 30, Not Active, Not Active\n"
    )
    first, second, third = parse_gpus(text)
    assert (first.uncorrected, first.throttled, first.used_bytes) == (0, False, 4 * 2**20)
    assert (second.uncorrected, second.throttled, second.celsius) == (2, True, 88)
    assert third.uncorrected is None


def test_each_two_machines_are_measured_and_a_bad_cable_is_named() -> None:
    hosts = ["a", "a", "b", "b", "c", "c"]
    assert pairs_to_measure(hosts) == [(0, 2), (0, 4), (2, 4)]
    assert len(pairs_to_measure([f"n{number}" for number in range(100)])) == 100
    found = only(slow_network({(0, 2): 1e9, (0, 4): 1e9, (2, 4): 2e8}, hosts))
    assert found.what == "b and c exchange 200.0 MB/s, with others both reach 1,000.0 MB/s"


def test_a_machine_with_a_slow_network_is_named_and_not_those_it_is_connected_to() -> None:
    hosts = ["a", "b", "c"]
    found = only(slow_network({(0, 1): 1e7, (0, 2): 1e9, (1, 2): 1.2e7}, hosts))
    assert (found.rank, found.host) == (1, "b")
    assert found.what == "exchanges no more than 12.0 MB/s with any other machine, most reach 1,000.0 MB/s"


def test_two_machines_cannot_be_compared_but_may_be_too_slow_for_anything() -> None:
    assert slow_network({(0, 1): 1e9}, ["a", "b"]) == []
    assert only(slow_network({(0, 1): 1e6}, ["a", "b"])).what == "a, b exchange no more than 1.0 MB/s"
    assert slow_network({}, ["a", "a"]) == []


def test_ranks_that_do_not_meet_are_told_apart() -> None:
    arrivals = [
        Arrival(0, "a", "joining", 0.0, reaches_meeting=True, meeting="a:1"),
        Arrival(1, "a", "failed", 0.0, problem="ImportError: libcudart.so"),
        Arrival(2, "b", "joining", 0.0, reaches_meeting=False, meeting="a:1"),
        Arrival(3, "b", "arrived", 0.0),
        Arrival(4, "c", "joining", 0.0, reaches_meeting=False, meeting="a:2"),
    ]
    found = {one.rank: one.what for one in missing_findings(arrivals, 6, 60.0)}
    assert found == {
        1: "ImportError: libcudart.so",
        2: "cannot connect to a:1, where rank 0 waits",
        3: "arrived, but has not loaded its libraries",
        4: "wants to meet at a:2, rank 0 waits at a:1",
        5: "did not arrive in 60 s",
    }


def test_without_rank_0_nobody_is_blamed_for_not_reaching_it() -> None:
    arrivals = [Arrival(1, "a", "joining", 0.0, reaches_meeting=False, meeting="a:1")]
    assert only(missing_findings(arrivals, 2, 60.0)).rank == 0


def test_all_there_but_unable_to_connect() -> None:
    arrivals = [Arrival(rank, "a", "joining", 0.0, reaches_meeting=True, meeting="a:1") for rank in (0, 1)]
    assert "GLOO_SOCKET_IFNAME" in only(missing_findings(arrivals, 2, 60.0)).advice


def test_a_report_survives_json_and_is_shown_in_lines() -> None:
    finding = Finding("clock", "warning", "its clock is +3.0 s off", "set it", 1, "node0")
    report = Report((finding,), ({"rank": 0, "host": "node0"},), {}, ("clock",))
    assert report_from_json(report.to_json()) == report
    assert "warning: clock: rank 1 on node0: its clock is +3.0 s off; set it" in render(report)


def test_under_srun_ranks_find_their_place_and_meeting_by_themselves() -> None:
    environment = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
    }
    place = find_place(environment)
    assert (place.rank, place.size, place.local_rank) == (3, 4, 1)
    find_meeting(environment)
    assert environment["MASTER_ADDR"] == "gpu07"
    assert 20000 <= int(environment["MASTER_PORT"]) < 32768


def test_a_rank_that_never_came_is_looked_for_on_the_node_where_srun_started_it() -> None:
    step = {"SLURM_STEP_NODELIST": "n[1-2,5]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    hosts = planned_hosts(step)
    assert hosts == {0: "n1", 1: "n1", 2: "n2", 3: "n2", 4: "n5"}
    assert {one.host for one in missing_findings([], 5, 60.0, hosts)} == {"n1", "n2", "n5"}
    assert planned_hosts(step | {"SLURM_DISTRIBUTION": "cyclic"}) == {}
    assert planned_hosts({}) == {}
