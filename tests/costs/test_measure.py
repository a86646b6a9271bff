"""Constants measured on this machine, on few and small sizes."""

import pytest
import torch

from sparse_pretrain.costs import measure_kernels
from sparse_pretrain.costs.clock import RankStopwatch, Stopwatch
from sparse_pretrain.costs.hardware import DEVICES, INTERCONNECTS, MeasuredLink
from sparse_pretrain.costs.links import all_reduce_seconds
from sparse_pretrain.costs.measure_kernels import measure_kernels as measure
from sparse_pretrain.costs.measure_links import measure_links
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed

CPU = torch.device("cpu")


def test_every_kernel_gets_constants_that_a_plan_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_kernels, "SECONDS", 0.0)
    monkeypatch.setattr(measure_kernels, "VOCABULARY", 512)
    monkeypatch.setattr(measure_kernels, "LINEAR_SHAPES", ((64, 32, 32), (64, 64, 128)))
    found = measure(CPU, torch.float32)
    assert {"linear backward", "attention train", "residual train", "loss kd", "stream"} <= found.keys()
    for cost in found.values():
        assert cost.per_flop + cost.per_element + cost.per_call > 0
    slow = DEVICES["cpu"]
    known = slow.model_copy(update={"kernels": {"fp32": found}})
    assert known.kernels["fp32"]["linear forward"] == found["linear forward"]


def links(world: World) -> MeasuredLink:
    watch = RankStopwatch(world)
    measured = measure_links(world, ["fp32"])
    assert watch.seconds() > 0
    return measured


@pytest.mark.slow
def test_collectives_are_timed_on_two_ranks_and_then_used() -> None:
    first, second = run_distributed(links, 2)
    assert first == second
    device = DEVICES["cpu"].model_copy(update={"local_measured": [first]})
    wire = INTERCONNECTS["ethernet-10g"]
    expected = first.latency + 1e6 * first.all_reduce["fp32"]
    assert all_reduce_seconds(1e6, device, "fp32", 2, 2, wire) == pytest.approx(expected)
    # Across machines nothing was measured.
    assert all_reduce_seconds(1e6, device, "fp32", 4, 2, wire) != pytest.approx(expected)


def test_a_stopwatch_leaves_out_no_work() -> None:
    watch = Stopwatch(CPU)
    sum(range(2_000_000))
    assert 0.001 < watch.seconds() < 10
