"""The bitmask format: exact, small, and never loaded when damaged."""

import gzip
import json
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification
from typer.testing import CliRunner

from sparse_pretrain.checkpoint.inspect import inspect
from sparse_pretrain.checkpoint.tensor_file import LazyTensor
from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.export import load_bitmask, load_model
from sparse_pretrain.export.bitmask import (
    BITMASK_FILE,
    export_bitmask,
    kept,
    open_bitmask,
    plan_file,
    select,
)
from sparse_pretrain.export.source import Source
from sparse_pretrain.export.stream import checksum_problem, write_stream
from sparse_pretrain.export.unpack import unpack
from sparse_pretrain.export.values import FLOATS, Precision, dequantise, quantise, row_scales
from sparse_pretrain.files import sha256_file
from sparse_pretrain.pruning.masks import MaskSet
from tests.export.models import classifier_folder

QUIET = Console(quiet=True)
BYTES = {"exact": 4, "fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "model"
    classifier_folder(folder)
    return folder


@pytest.fixture(scope="module")
def packed(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "bitmask"
    export_bitmask(released, folder, QUIET)
    return folder


def bit_patterns(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@given(
    patterns=st.lists(st.one_of(st.just(0), st.integers(0, 2**32 - 1)), min_size=1, max_size=200),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_bits_come_back_also_of_nan_and_minus_zero(patterns: list[int], seed: int) -> None:
    matrix = torch.from_numpy(np.array(patterns, dtype=np.uint32).view(np.float32).copy())
    mask = torch.from_numpy(np.random.default_rng(seed).random(len(patterns)) < 0.5)
    for present in (kept(matrix, None), kept(matrix, mask)):
        back = torch.zeros(len(patterns), dtype=torch.int32)
        back[present] = select(matrix, present).view(torch.int32)
        assert bit_patterns(back) == bit_patterns(matrix)


@given(
    st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-42, 1e-3, 1.0, 1e30])
)
def test_int8_is_nearer_than_half_a_step_of_its_row(rows: int, columns: int, seed: int, size: float) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, columns)) * size).float()
    matrix[0] = 0.0
    scales = row_scales(matrix)
    wrong = (dequantise(quantise(matrix), scales) - matrix).abs()
    assert bool((wrong <= scales.unsqueeze(1) * 0.5001 + torch.finfo(torch.float32).tiny).all())
    assert not bool(quantise(matrix)[0].any())


def test_an_unpacked_release_is_the_release(released: Path, packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "back", QUIET)
    assert sha256_file(tmp_path / "back" / "model.safetensors") == sha256_file(released / "model.safetensors")
    masks = [MaskSet.load(folder / "masks.safetensors").digest() for folder in (released, tmp_path / "back")]
    assert masks[0] == masks[1]
    assert inspect(tmp_path / "back")["check"]["ok"]
    assert {path.name for path in (tmp_path / "back").iterdir()} >= {"config.json", "tokenizer.json"}


def test_one_line_makes_the_model_of_a_bitmask_folder(released: Path, packed: Path) -> None:
    model, original = load_model(packed), load_model(released)
    assert type(model).__name__ == "BertForSequenceClassification"
    ids = torch.arange(5, 35).reshape(2, 15)
    assert torch.equal(model(input_ids=ids).logits, original(input_ids=ids).logits)


def test_anybodys_model_takes_the_weights_in_three_lines(released: Path, packed: Path) -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(packed)).eval()
    model.load_state_dict(load_bitmask(packed))
    ids = torch.arange(5, 35).reshape(2, 15)
    assert torch.equal(model(input_ids=ids).logits, load_model(released)(input_ids=ids).logits)


@pytest.mark.parametrize("precision", list(BYTES))
@pytest.mark.parametrize("masks", [True, False])
def test_every_precision_gives_its_values_and_the_promised_size(
    precision: Precision, masks: bool, tmp_path: Path
) -> None:
    model = classifier_folder(tmp_path / "model", masks=masks)
    facts = export_bitmask(tmp_path / "model", tmp_path / "out", QUIET, precision)
    least = facts["kept_weights"] * BYTES[precision] + facts["prunable_weights"] / 8
    # Matrices of 32 rows: their fp32 scales weigh far more than in a real model, see the test below.
    assert facts["prunable_bytes"] <= 1.05 * least + (4 * 450 if precision == "int8" else 0)
    assert facts["kept_weights"] == pytest.approx(0.15 * facts["prunable_weights"], rel=0.01)

    opened = open_bitmask(tmp_path / "out")
    dense, original = load_bitmask(tmp_path / "out"), load_file(tmp_path / "model" / "model.safetensors")
    assert dense.keys() == original.keys() == {name for name, _ in model.named_parameters()}
    for name, weight in original.items():
        expected = weight
        if name in opened.matrices and precision == "int8":
            expected = dequantise(quantise(weight), row_scales(weight))
        elif name in opened.matrices and precision != "exact":
            expected = weight.to(FLOATS[precision]).to(torch.float32)
        assert dense[name].dtype == torch.float32
        assert bit_patterns(dense[name]) == bit_patterns(expected), name


def test_the_other_tensors_in_fp16_come_back_in_their_own_type(released: Path, tmp_path: Path) -> None:
    facts = export_bitmask(released, tmp_path / "out", QUIET, "int8", others="fp16")
    opened, dense = open_bitmask(tmp_path / "out"), load_bitmask(tmp_path / "out")
    original = load_file(released / "model.safetensors")
    for name in opened.plain:
        assert dense[name].dtype == torch.float32
        assert torch.equal(dense[name], original[name].half().float())
    others = sum(original[name].numel() for name in opened.plain)
    gzipped = len(gzip.compress((released / "model.safetensors").read_bytes()))
    assert facts["prunable_bytes"] + 2 * others < gzipped


@pytest.mark.parametrize("sparsity", [0.85, 0.9])
@pytest.mark.parametrize("precision", list(BYTES))
def test_the_size_keeps_its_promise_at_the_shapes_of_bert(sparsity: float, precision: Precision) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(3072, 768)
    matrix.view(-1)[torch.randperm(matrix.numel())[: round(sparsity * matrix.numel())]] = 0.0
    tensors = {"w": LazyTensor(matrix.dtype, matrix.shape, lambda: matrix)}
    source = Source(Path(), AutoConfig.for_model("bert"), tensors, None, ["w"])
    _, facts = plan_file(source, precision, QUIET)
    least = int(torch.count_nonzero(matrix)) * BYTES[precision] + matrix.numel() / 8
    assert least <= facts["prunable_bytes"] <= 1.05 * least


def test_a_file_cut_anywhere_is_refused(packed: Path, tmp_path: Path) -> None:
    content = (packed / BITMASK_FILE).read_bytes()
    for length in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        (tmp_path / BITMASK_FILE).write_bytes(content[:length])
        with pytest.raises(UserError, match=r"truncated|no checksum"):
            open_bitmask(tmp_path)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_refused(packed: Path, place: float, bit: int) -> None:
    content = bytearray((packed / BITMASK_FILE).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = packed.parent / "damaged.safetensors"
    damaged.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_bitmask(damaged)
    assert "\n" not in str(caught.value)


def test_bits_and_values_that_do_not_belong_together_are_refused(packed: Path, tmp_path: Path) -> None:
    """A file somebody made, checksum and all."""
    with safe_open(packed / BITMASK_FILE, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "checksum"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(iter(json.loads(metadata["matrices"])))
    for part, broken in (("bits", tensors[f"{name}.bits"][:-1]), ("values", tensors[f"{name}.values"][:-1])):
        write_stream(tmp_path / "f", {**tensors, f"{name}.{part}": broken}, metadata, checksum=True)
        with pytest.raises(UserError, match=name):
            load_bitmask(tmp_path / "f")
    write_stream(
        tmp_path / "f",
        {key: value for key, value in tensors.items() if key != f"{name}.bits"},
        metadata,
        True,
    )
    with pytest.raises(UserError, match="not whole"):
        load_bitmask(tmp_path / "f")


def test_mistakes_are_one_line_and_exit_code_2(released: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / BITMASK_FILE).write_bytes((packed / BITMASK_FILE).read_bytes()[:5000])
    for arguments, expected in (
        (["unpack", str(tmp_path / "cut"), str(tmp_path / "out")], "truncated"),
        (["unpack", str(released), str(tmp_path / "out")], "no such bitmask file"),
        (["unpack", str(released / "model.safetensors"), str(tmp_path / "out")], "no checksum"),
        (["bitmask", str(tmp_path / "nowhere" / "a"), str(tmp_path / "out")], "no such folder"),
        (["bitmask", str(released), str(released)], "not empty"),
        (["bitmask", str(released), str(released), "--overwrite"], "holds no export"),
    ):
        done = CliRunner().invoke(app, ["export", *arguments])
        assert isinstance(done.exception, UserError), done.output
        assert expected in str(done.exception)
        assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["bert.pooler.dense.weight"].masked_fill_(weights["bert.pooler.dense.weight"] != 0, 1e6)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"pooler.*use --dtype bf16"):
        export_bitmask(tmp_path / "model", tmp_path / "out", QUIET, "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_dense_model_is_packed_with_a_warning(tmp_path: Path) -> None:
    classifier_folder(tmp_path / "model", masks=False, sparsity=0.0)
    with (console := Console(width=300)).capture() as captured:
        export_bitmask(tmp_path / "model", tmp_path / "out", console)
    assert "dense (0.00% zeros); the file will not be smaller" in captured.get()


def test_of_a_streamed_file_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[Any]] = []

    def make(number: int) -> Tensor:
        assert not any(reference() is not None for reference in made)
        values = np.full(3, number, dtype=np.float32)
        made.append(weakref.ref(values))
        return torch.from_numpy(values)

    lazy = {
        str(number): LazyTensor(torch.float32, torch.Size([3]), partial(make, number)) for number in range(3)
    }
    write_stream(tmp_path / "f", lazy, {}, checksum=True)
    assert checksum_problem(tmp_path / "f") is None
    assert load_file(tmp_path / "f")["2"].tolist() == [2.0, 2.0, 2.0]
