"""The training benchmark on a tiny model: both sides run, and the numbers mean what they say."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from sparse_pretrain.bench.run import run_bench
from sparse_pretrain.bench.train import compared, prepared, random_model
from sparse_pretrain.bench.train_flops import measure_ceiling, step_flops
from sparse_pretrain.bench.train_measure import mean_keys
from sparse_pretrain.bench.train_settings import MODES, Case, LossCheck, Measurement, cases
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.data.shards import PreparedSplit
from tests.data_prep.corpus import prose, write_tokenizers
from tests.tiny import tiny_prepared

TINY = Case(model="tiny", length=64, precision="fp32", rows=4, steps=2, ranks=2)


def measurement_of(side: str, place: Path) -> Measurement:
    """Pruning with a teacher, on prepared text in `place`."""
    folders = prepared(place / "text.jsonl", str(place / "tokenizers" / "bert"), TINY.length, place)
    start = random_model(TINY, read_manifest(Path(folders["packed"])).vocabulary_size, place)
    return Measurement.model_validate(
        {"case": TINY, "side": side, "mode": "pruning + teacher", "start": str(start), **folders}
    )


def write_text(place: Path, sentences: int) -> None:
    """Write documents of so many sentences, and a tokenizer."""
    documents = (json.dumps({"text": prose(seed, sentences)}) + "\n" for seed in range(100))
    (place / "text.jsonl").write_text("".join(documents))
    write_tokenizers(place / "tokenizers")


@pytest.mark.slow
def test_both_sides_take_steps_on_two_ranks(tmp_path: Path) -> None:
    write_text(tmp_path, 20)
    for side in ("reference", "ours"):
        measurement = measurement_of(side, tmp_path)
        numbers = run_bench("train", measurement, TINY.ranks, tmp_path)
        assert numbers["fill"] == pytest.approx(1.0 if side == "ours" else 0.8, abs=0.2)
        slots = TINY.ranks * TINY.rows * TINY.length
        assert numbers["tokens_per_s"] * numbers["seconds"] == pytest.approx(numbers["fill"] * slots)
        assert 0 < numbers["flops_per_s"] < numbers["ceiling_flops_per_s"]
        assert numbers["peak_bytes"] > 2**27


@pytest.mark.slow
def test_without_dropout_both_sides_have_the_same_loss_at_every_step(tmp_path: Path) -> None:
    """The fast step and the plain one are the same training, masks and teacher included."""
    write_text(tmp_path, 9)
    check = LossCheck(measurement=measurement_of("ours", tmp_path), steps=20, dropout=False)
    numbers = run_bench("losses", check, 1, tmp_path)
    assert len(numbers["ours"]) == 20
    assert numbers["ours"] == pytest.approx(numbers["reference"], abs=2e-4)
    assert numbers["ours"][-1] < numbers["ours"][0]


def test_a_steps_operations_are_counted_by_hand() -> None:
    config = AutoConfig.for_model(
        "bert", hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, vocab_size=10
    )
    # Of one token: 4 matrices of 4 x 4, 2 of 4 x 8, scores and sums over 3 tokens; in two layers.
    layers = 2 * (2 * (4 * 16 + 2 * 32) + 2 * 2 * 3 * 4)
    head = 2 * (16 + 40)
    assert step_flops(config, tokens=6, keys=3, logits=2, teacher=False) == 3 * (6 * layers + 2 * head)
    assert step_flops(config, tokens=6, keys=3, logits=2, teacher=True) == 4 * (6 * layers + 2 * head)


def test_keys_are_counted_inside_sequences(tmp_path: Path) -> None:
    split = PreparedSplit(tiny_prepared(tmp_path / "several", sequences=True), "train")
    rows = split.gather(np.arange(len(split)))
    assert rows.starts is not None
    sizes = [
        end - start
        for row, length in enumerate(rows.lengths.tolist())
        for start, end in pairwise([*rows.starts.row(row).tolist(), length])
    ]
    assert mean_keys(split) == pytest.approx(sum(size**2 for size in sizes) / sum(sizes))
    alone = PreparedSplit(tiny_prepared(tmp_path / "one"), "train")
    lengths = alone.gather(np.arange(len(alone))).lengths
    assert mean_keys(alone) == pytest.approx((lengths**2).sum() / lengths.sum())


def test_the_ceiling_is_a_rate_that_this_machine_could_have() -> None:
    assert 1e8 < measure_ceiling(torch.device("cpu"), torch.float32) < 1e15


def side(seconds: float, tokens: float, peak: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "tokens_per_s": tokens,
        "peak_bytes": peak,
        "flops_per_s": 50.0 / seconds,
        "ceiling_flops_per_s": 100.0,
    }


def test_ratios_are_of_like_things() -> None:
    ours, reference = (1.0, 1.02, 1.5), (2.0, 3.0, 6.0)
    modes = {
        mode: {"ours": side(mine, 90 / mine, 4e9), "reference": side(its, 60 / its, 8e9)}
        for mode, mine, its in zip(MODES, ours, reference, strict=True)
    }
    numbers = compared(TINY, modes)
    assert numbers["tokens_per_s_ratio"] == pytest.approx((90 / 1.5) / (60 / 6.0))
    assert numbers["memory_ratio"] == 0.5
    assert numbers["step_ratio"] == 4.0
    assert numbers["mfu"] == 0.5
    assert numbers["prune_overhead"] == pytest.approx(0.02)
    assert numbers["teacher_overhead"] == pytest.approx(1.5 / 1.02)
    assert numbers["modes"]["dense"]["tokens_per_s_ratio"] == pytest.approx(3.0)


def test_every_case_has_as_many_slots_as_the_reference_was_measured_with() -> None:
    found = cases(["bert-base", "minilm-l6"], [128, 512], [1, 2], ["bf16", "fp32"])
    assert len(found) == 16
    assert {case.rows * case.length for case in found} == {2048}
