"""Masks on disk and in memory."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.bits import pack_bits, unpack_bits
from sparse_pretrain.pruning.masks import MaskSet


@given(st.lists(st.booleans(), min_size=1, max_size=100))
def test_packing_round_trips_at_one_bit_a_weight(bits: list[bool]) -> None:
    mask = torch.tensor(bits)
    packed = pack_bits(mask)
    assert packed.numel() == -(-len(bits) // 8)
    assert unpack_bits(packed, len(bits)).tolist() == bits


def test_save_and_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    masks = MaskSet({"b": torch.rand(7, 13) > 0.5, "a": torch.rand(64, 64) > 0.9})
    masks.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    assert loaded.digest() == masks.digest()
    assert all((loaded[name] == masks[name]).all() for name in masks)
    assert (tmp_path / "masks.safetensors").stat().st_size < (7 * 13 + 64 * 64) // 8 + 600


def test_digest_sees_one_bit_and_one_name() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool)
    changed = mask.clone()
    changed[3, 3] = False
    digests = {MaskSet({"a": mask}).digest(), MaskSet({"a": changed}).digest(), MaskSet({"b": mask}).digest()}
    assert len(digests) == 3


def test_replace_counts_flips_and_changes_the_tensor_in_place() -> None:
    masks = MaskSet({"a": torch.tensor([True, True, False, False])})
    held = masks["a"]
    flips = masks.replace("a", torch.tensor([False, True, True, True]))
    assert flips == (1, 2)
    assert held.tolist() == [False, True, True, True]


def test_from_zeros_and_sparsity() -> None:
    masks = MaskSet.from_zeros({"a": torch.tensor([[0.0, 2.0], [0.0, -1.0]]), "b": torch.ones(4)})
    assert masks.sparsity("a") == 0.5
    assert masks.total_sparsity() == 0.25


@pytest.mark.parametrize("content", [b"", b"not a mask file at all", b"\xff" * 200])
def test_broken_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"masks\.safetensors"):
        MaskSet.load(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such mask file"):
        MaskSet.load(tmp_path / "masks.safetensors")
