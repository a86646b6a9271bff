"""The 2:4 format: exact, half the values, torch's own metadata, and never loaded when damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    _calculate_meta_reordering_scatter_offsets,
    sparse_semi_structured_from_dense_cutlass,
)
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.export import load_model, load_two_four
from sparse_pretrain.export.stream import write_stream
from sparse_pretrain.export.two_four import TWO_FOUR_FILE, export_two_four, open_two_four
from sparse_pretrain.export.two_four_pattern import (
    PLACES,
    compress,
    expand,
    lost_minus_zeros,
    pattern_problem,
)
from sparse_pretrain.export.unpack import unpack
from sparse_pretrain.files import sha256_file
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.pruning.structures.n_of_m import highest
from tests.tiny import VOCABULARY
from tests.tiny_models import save_sparse, tiny_config

QUIET = Console(quiet=True)
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def two_four_folder(folder: Path, masks: bool = True) -> Path:
    """A classifier whose prunable matrices keep two of every four weights; one row of each keeps fewer."""
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=1, intermediate_size=36, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    chosen = {}
    for name, weight in prunable_weights(model).items():
        chosen[name] = highest(weight.detach().abs().view(-1, 4), 2).reshape(weight.shape).clone()
        chosen[name][0, :7] = False
    return save_sparse(model, MaskSet(chosen), folder, mask_file=masks)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_four_folder(tmp_path_factory.mktemp("two-four") / "model")


@pytest.fixture(scope="module")
def packed(model: Path) -> Path:
    export_two_four(model, model.parent / "packed", QUIET)
    return model.parent / "packed"


def bit_patterns(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Any 2:4 matrix of any bits: NaN, infinities and denormal numbers among them."""
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    raw = random.integers(0, 256, rows * groups * 4 * dtype.itemsize, dtype=np.uint8)
    matrix = torch.from_numpy(raw).view(dtype).view(-1, 4).clone()
    for group in range(len(matrix)):
        matrix[group, random.permutation(4)[: random.integers(2, 5)]] = 0
    return matrix.view(rows, groups * 4)


@settings(max_examples=60)
@given(matrix=matrices(), with_mask=st.booleans())
def test_any_two_four_matrix_comes_back_bit_by_bit_from_half_the_values(
    matrix: Tensor, with_mask: bool
) -> None:
    mask = matrix != 0 if with_mask else None
    assert pattern_problem(matrix, mask) is None
    values, places = compress(matrix, mask)
    assert values.dtype == matrix.dtype
    assert values.numel() * 2 == matrix.numel()
    assert places.numel() == -(-matrix.numel() // 8)
    assert bit_patterns(expand(values, places, matrix.shape)) == bit_patterns(matrix)


@given(kept=st.integers(3, 4), row=st.integers(0, 3), group=st.integers(0, 2), by_mask=st.booleans())
def test_a_group_that_keeps_more_is_named(kept: int, row: int, group: int, by_mask: bool) -> None:
    matrix = torch.tensor([1.0, 0.0, 2.0, 0.0]).repeat(4, 3)
    mask = matrix != 0
    (mask if by_mask else matrix)[row, 4 * group : 4 * group + 4] = torch.arange(4) < kept
    problem = pattern_problem(matrix, mask)
    assert problem is not None
    if not by_mask or kept == 4:
        assert f"row {row}, columns {4 * group} to {4 * group + 3}: " in problem
        assert f"{kept} of four are kept, 2:4 allows two (1 of 12 groups" in problem


def test_shapes_that_are_no_two_four_are_named() -> None:
    assert "37 columns" in str(pattern_problem(torch.zeros(4, 37), None))
    assert "3 dimensions" in str(pattern_problem(torch.zeros(4, 4, 4), None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_values_and_places_are_torchs_own_before_its_reordering(dtype: torch.dtype) -> None:
    """The numbers that sparse tensor cores get, on a CPU: groups of two, one and no value among them."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randint(1, 9, (64, 128), generator=generator).to(dtype).view(-1, 4)
    order = torch.rand(dense.shape, generator=generator).argsort(dim=1)
    zeros = torch.randint(2, 5, (len(dense), 1), generator=generator)
    dense = dense.masked_fill(order < zeros, 0).view(64, 128)
    values, places = compress(dense, None)
    torch_values, reordered = sparse_semi_structured_from_dense_cutlass(dense)
    offsets = _calculate_meta_reordering_scatter_offsets(
        *reordered.shape, reordered.dtype, torch.device("cpu")
    )
    assert torch.equal(values, torch_values)
    assert torch.equal(places.view(reordered.dtype), reordered.view(-1)[offsets])


def test_minus_zeros_stay_where_there_is_room_and_are_counted_where_there_is_none() -> None:
    matrix = torch.tensor([[1.0, -0.0, 0.0, 0.0], [1.0, -0.0, 2.0, -0.0]])
    assert lost_minus_zeros(matrix, None) == 2
    dense = expand(*compress(matrix, None), matrix.shape)
    assert torch.equal(dense, matrix)
    assert dense[0].signbit().tolist() == [False, True, False, False]
    assert not dense[1].signbit().any()


def test_the_release_comes_back_byte_for_byte_masks_included(
    model: Path, packed: Path, tmp_path: Path
) -> None:
    unpack(packed, tmp_path / "plain", QUIET)
    for name in ("model.safetensors", MASK_FILE, "config.json", "tokenizer.json"):
        assert sha256_file(tmp_path / "plain" / name) == sha256_file(model / name), name
    original = load_file(model / "model.safetensors")
    dense = load_two_four(packed)
    assert dense.keys() == original.keys()
    assert all(bit_patterns(dense[name]) == bit_patterns(weight) for name, weight in original.items())
    ids = torch.arange(5, 35).reshape(2, 15) % len(VOCABULARY)
    assert torch.equal(load_model(packed)(input_ids=ids).logits, load_model(model)(input_ids=ids).logits)


def test_sizes_are_half_the_values_and_one_bit_a_weight(packed: Path) -> None:
    facts = json.loads((packed / "export.json").read_text())
    weights = facts["prunable_weights"]
    assert facts["prunable_bytes"] == weights * 2 + weights / 8
    assert facts["dense_prunable_bytes"] == weights * 4
    assert facts["not_packed"] == {}
    assert facts["bytes"] == (packed / TWO_FOUR_FILE).stat().st_size


def test_what_is_not_two_four_is_refused_by_name_or_stored_dense(tmp_path: Path) -> None:
    folder = two_four_folder(tmp_path / "model", masks=False)
    weights = load_file(folder / "model.safetensors")
    weights[QUERY][3, 8:12] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["export", "two-four", *map(str, arguments)])

    refused = run(folder, tmp_path / "out")
    assert isinstance(refused.exception, UserError)
    message = str(refused.exception)
    assert f"{QUERY} is not 2:4: row 3, columns 8 to 11: 3 of four are kept, 2:4 allows two" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()

    done = run(folder, tmp_path / "out", "--skip-others", "--json")
    assert done.exit_code == 0, done.output
    assert list(json.loads(done.stdout)["not_packed"]) == [QUERY]
    assert QUERY not in open_two_four(tmp_path / "out").matrices
    dense = load_two_four(tmp_path / "out")
    assert all(bit_patterns(dense[name]) == bit_patterns(weight) for name, weight in weights.items())
    assert run(folder, tmp_path / "out", "--skip-others", "--overwrite").exit_code == 0

    torch.manual_seed(0)
    save_file(
        {name: torch.randn_like(weight) for name, weight in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    none = run(folder, tmp_path / "none", "--skip-others")
    assert "matrices is 2:4" in str(none.exception)


@settings(max_examples=30)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_or_a_cut_anywhere_is_refused(packed: Path, place: float, bit: int) -> None:
    content = bytearray((packed / TWO_FOUR_FILE).read_bytes())
    where = int(place * len(content))
    damaged = packed.parent / "damaged.safetensors"
    damaged.write_bytes(content[:where])
    with pytest.raises(UserError, match=r"truncated|no checksum"):
        open_two_four(damaged)
    content[where] ^= 1 << bit
    damaged.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_two_four(damaged)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(packed: Path, tmp_path: Path) -> None:
    """A file somebody made, checksum and all."""
    with safe_open(packed / TWO_FOUR_FILE, framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "checksum"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values, places = tensors[f"{QUERY}.values"], tensors[f"{QUERY}.places"]
    for part, broken in (
        ("values", values[:-1]),
        ("values", values.half()),
        ("places", places[:-1]),
        ("places", torch.zeros_like(places)),
    ):
        write_stream(tmp_path / "f", {**tensors, f"{QUERY}.{part}": broken}, metadata, checksum=True)
        with pytest.raises(UserError, match=f"{QUERY} is broken"):
            load_two_four(tmp_path / "f")
    del tensors[f"{QUERY}.places"]
    write_stream(tmp_path / "f", tensors, metadata, checksum=True)
    with pytest.raises(UserError, match="not whole"):
        load_two_four(tmp_path / "f")
    with pytest.raises(UserError, match="no such two-four file"):
        open_two_four(tmp_path)


def test_six_of_the_sixteen_codes_are_pairs_of_places() -> None:
    assert sorted(PLACES) == [4, 8, 9, 12, 13, 14]
    for code in set(range(16)) - set(PLACES):
        with pytest.raises(ValueError, match="no two places"):
            expand(torch.ones(1, 2), torch.tensor([code], dtype=torch.uint8), torch.Size([1, 4]))
    with pytest.raises(ValueError, match="half byte"):
        expand(torch.ones(1, 2), torch.tensor([4 + 4 * 16], dtype=torch.uint8), torch.Size([1, 4]))
