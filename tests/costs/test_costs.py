"""What must hold of every prediction, and counts against torch's own."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertForPreTraining

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.costs import counts
from sparse_pretrain.costs.fit import Sample, fit
from sparse_pretrain.costs.hardware import DEVICES, INTERCONNECTS, Link
from sparse_pretrain.costs.job import Job, job_of
from sparse_pretrain.costs.links import all_reduce_seconds
from sparse_pretrain.costs.memory import states
from sparse_pretrain.costs.predict import Choice, predict
from sparse_pretrain.costs.scaling import EXHAUSTED, scaling
from sparse_pretrain.costs.search import search
from sparse_pretrain.costs.time import Layout
from sparse_pretrain.costs.work import Work
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.pretraining import PretrainingModel
from sparse_pretrain.training.plan import plan

H100, FAST = DEVICES["h100"], INTERCONNECTS["8x400g"]


def job(*overrides: str) -> Job:
    return job_of(load_recipe("bert-base-85", list(overrides), TrainRecipe), H100)


def layout(ranks: int) -> Layout:
    return Layout(ranks, min(8, ranks), FAST)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_memory_of_states_is_what_the_dry_run_says(stage: int, ranks: int) -> None:
    asked = job(f"engine.stage={stage}", "precision=bf16")
    said = plan(asked.recipe, ranks)["memory_per_rank_bytes"]
    predicted = predict(asked, Choice(stage, 8), H100, layout(ranks)).memory
    assert {name: predicted[name] for name in said if name != "total"} == {
        name: size for name, size in said.items() if name != "total"
    }


def test_a_higher_stage_and_more_ranks_never_need_more_memory_for_states() -> None:
    asked = job()

    def size(stage: int, ranks: int) -> int:
        return sum(states(asked.recipe, asked.shape, ranks, 2, stage).values())

    for ranks in (1, 2, 8, 64):
        assert size(1, ranks) >= size(2, ranks) >= size(3, ranks)
        for stage in (1, 2, 3):
            assert size(stage, 2 * ranks) <= size(stage, ranks)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_faster_device_or_network_makes_no_step_slower(stage: int) -> None:
    asked, choice = job(), Choice(stage, 16)
    faster = H100.model_copy(
        update={"flops": {"bf16": 2 * H100.flops["bf16"]}, "bandwidth": 2 * H100.bandwidth}
    )
    slow, fast = (predict(asked, choice, device, layout(16)).time.seconds for device in (H100, faster))
    assert fast < slow
    ethernet = Layout(16, 8, INTERCONNECTS["ethernet-10g"])
    assert predict(asked, choice, H100, ethernet).time.seconds > slow


def test_terms_add_up_and_throughput_follows() -> None:
    found = predict(job(), Choice(2, 16), H100, layout(8))
    assert found.accumulation == 2
    assert found.tokens_per_s * found.time.seconds == pytest.approx(256 * 512)
    assert found.gpu_hours == pytest.approx(100_000 * found.time.seconds * 8 / 3600)
    assert 0 < found.mfu < H100.matmul_fraction
    assert found.memory["total"] == pytest.approx(sum(v for k, v in found.memory.items() if k != "total"))


def test_pruning_and_a_teacher_cost_time_and_memory() -> None:
    both = predict(job(), Choice(2, 16), H100, layout(8))
    pruning = predict(job("distillation=null"), Choice(2, 16), H100, layout(8))
    plain = "learning_rate.kind=linear"
    dense = predict(job("distillation=null", "pruning=null", plain), Choice(2, 16), H100, layout(8))
    assert both.time.seconds > pruning.time.seconds > dense.time.seconds
    assert both.memory["total"] > pruning.memory["total"] > dense.memory["total"]
    assert dense.time.terms["masks"] == dense.time.terms["mask updates"] == 0


def test_the_best_choice_fits_and_nothing_that_fits_is_faster() -> None:
    found = search(job("batch.global_size=2048"), DEVICES["a100-40gb"], layout(8))
    assert found.best.fits
    assert found.runner_up is not None
    fitting = [one for one in found.tried if one.fits]
    assert found.best.time.seconds <= 1.01 * min(one.time.seconds for one in fitting)
    assert len(fitting) < len(found.tried)


def test_a_model_that_fits_nowhere_is_the_users_mistake() -> None:
    small = H100.model_copy(update={"memory": 3e9})
    with pytest.raises(UserError, match=r"nothing fits on 1 x .* GiB"):
        search(job(), small, layout(1))


def test_scaling_ends_where_ranks_have_no_row() -> None:
    points = scaling(job("batch.global_size=32"), H100, 8, FAST, most=128)
    assert [point.ranks for point in points] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert [point.limit == EXHAUSTED for point in points] == [False] * 6 + [True] * 2
    speeds = [point.best.tokens_per_s for point in points if point.best is not None]
    assert len(speeds) == len(points)
    assert speeds == sorted(speeds)
    assert points[-1].efficiency < points[0].efficiency == 1


def test_an_all_reduce_by_hand() -> None:
    device = H100.model_copy(update={"local": Link(bytes_per_s=100.0, latency=0.0)})
    between = Link(bytes_per_s=10.0, latency=0.0)
    # Inside 2 (3 / 4) 1,000 bytes at 100 a second; between 2 machines all bytes leave each once or twice: 2 (1 / 2).
    assert all_reduce_seconds(1000, device, "bf16", 4, 4, between) == pytest.approx(15.0)
    assert all_reduce_seconds(1000, device, "bf16", 8, 4, between) == pytest.approx(15.0 + 100.0)
    assert all_reduce_seconds(1000, device, "bf16", 1, 4, between) == 0


def test_constants_are_found_again() -> None:
    works = [
        Work("loop", "k", flops, elements, 0, calls)
        for flops, elements, calls in ((1e9, 1e3, 1), (2e9, 5e6, 2), (3e8, 1e7, 1))
    ]
    found = fit(
        [Sample(work, 1e-11 * work.flops + 2e-9 * work.elements + 1e-5 * work.calls) for work in works]
    )
    assert found.per_flop == pytest.approx(1e-11)
    assert found.per_element == pytest.approx(2e-9)
    assert found.per_call == pytest.approx(1e-5)


@pytest.mark.parametrize("everywhere", [False, True])
def test_flops_and_parameters_equal_a_real_tiny_step(everywhere: bool) -> None:
    rows, length = 4, 32
    config = AutoConfig.for_model(
        "bert",
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=211,
    )
    config._attn_implementation = "eager"
    model = BertForPreTraining(config)  # type: ignore[arg-type]
    wrapped = PretrainingModel(model)
    positions = torch.arange(rows * length if everywhere else 19)
    tokens = torch.randint(0, 211, (rows, length))
    # The counter does not see into attention and projection of our own, so torch's are taken.
    projection = model.get_output_embeddings()
    projection.__class__ = torch.nn.Linear
    with FlopCounterMode(display=False) as counter:
        said = wrapped(tokens, None, torch.zeros_like(tokens), positions, True)
        assert said.next_sentence is not None
        (said.tokens.sum() + said.next_sentence.sum()).backward()
    weights = list(model.parameters())
    shape = counts.Shape.of(config, sum(weight.numel() for weight in weights), len(weights), pooled=True)
    batch = counts.Pass(rows, length, len(positions), len(positions))
    works = counts.micro_batch(shape, batch, 4)
    assert counts.model_flops(works) == pytest.approx(counter.get_total_flops(), rel=0.02)
    # By hand: embeddings, two layers, pooler, head (its projection is tied) and next-sentence head.
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    embeddings = (211 + 512 + 2) * 32 + 2 * 32
    heads = 2 * (32 * 32 + 32) + 2 * 32 + 211 + 2 * 32 + 2
    assert shape.parameters == embeddings + 2 * layer + heads


def test_the_job_of_a_recipe_counts_its_models_parameters() -> None:
    asked = job()
    assert asked.shape.parameters == plan(asked.recipe, 1)["parameters"]
    assert asked.shape.prunable == plan(asked.recipe, 1)["prunable_weights"]
    assert asked.update_every == pytest.approx(100_000 / 81)


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"precision = 'bf16': V100 .* fp16, fp32"):
        job_of(load_recipe("bert-base-85", ["precision=bf16"], TrainRecipe), DEVICES["v100"])


def test_rows_longer_than_the_models_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--length = 513: the model has 512 positions"):
        job_of(load_recipe("bert-base-85", [f"output={tmp_path}"], TrainRecipe), H100, 513)
