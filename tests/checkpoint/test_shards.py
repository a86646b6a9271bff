"""Fragments are read back by any number of ranks, to the bit, and a file that is not ours is named."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.integrity import FileFacts
from sparse_pretrain.checkpoint.layout import weight_file
from sparse_pretrain.checkpoint.shards import NONZERO, FragmentReader, Piece, write_rank
from sparse_pretrain.checkpoint.store import open_weights
from sparse_pretrain.checkpoint.tensor_file import write_tensors
from sparse_pretrain.checkpoint.zeros import SAMPLE, drop_zeros, restore_zeros
from sparse_pretrain.errors import UserError

# 0.0, -0.0, the smallest denormal, infinity, a quiet NaN, a signalling NaN with a payload, 1.0.
PATTERNS = (0x00000000, 0x80000000, 0x00000001, 0x7F800000, 0x7FC00000, 0xFFA12345, 0x3F800000)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64)


def bits_of(values: Tensor) -> list[int]:
    return values.contiguous().view(torch.int32).tolist()


def from_patterns(patterns: list[int]) -> Tensor:
    return torch.from_numpy(np.array(patterns, dtype=np.uint32).view(np.float32))


@st.composite
def values(draw: st.DrawFn, most: int = 60) -> Tensor:
    """Flat fp32 values of any bits, many of them zero."""
    special = st.sampled_from(PATTERNS) | st.just(0) | st.integers(0, 2**32 - 1)
    return from_patterns(draw(st.lists(special, max_size=most)))


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def write_cut(folder: Path, weight: Tensor, cuts: list[int], without_zeros: bool) -> list[Path]:
    """Write a flat weight as one file a piece."""
    edges = sorted({0, weight.numel(), *(cut for cut in cuts if cut < weight.numel())})
    files = []
    for rank, (first, last) in enumerate(pairwise(edges)):
        path = folder / f"rank-{rank:05d}.safetensors"
        pieces = [Piece("master", "w", first, weight[first:last])]
        write_rank(path, pieces, {"w": weight.shape}, {}, without_zeros=without_zeros)
        files.append(path)
    return files


@settings(max_examples=40, deadline=None)
@given(
    weight=values(),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    start=st.integers(0, 60),
    length=st.integers(0, 60),
)
def test_any_range_is_read_whatever_the_cut(weight: Tensor, cuts: list[int], start: int, length: int) -> None:
    with TemporaryDirectory() as name:
        files = write_cut(Path(name), weight, cuts, without_zeros=False)
        reader = FragmentReader(files)
        if files:
            assert bits_of(reader.whole("master", "w")) == bits_of(weight)
        if not length or start + length <= weight.numel():
            part = reader.read("master", "w", start, length)
            assert bits_of(part) == bits_of(weight[start : start + length])
        else:
            with pytest.raises(UserError, match="a shard is missing"):
                reader.read("master", "w", start, length)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    share=st.sampled_from([0.3, 0.8, 1.0]),
    cuts=st.lists(st.integers(0, 3 * SAMPLE), max_size=3),
    start=st.integers(0, 3 * SAMPLE),
    length=st.integers(0, 3 * SAMPLE),
)
def test_any_range_is_read_from_fragments_without_their_zeros(
    seed: int, share: float, cuts: list[int], start: int, length: int
) -> None:
    """Also from a mixture: fragments that are too short to be worth it keep their zeros."""
    generator = np.random.default_rng(seed)
    patterns = generator.choice(np.array(PATTERNS, dtype=np.uint32), 3 * SAMPLE)
    patterns[generator.random(3 * SAMPLE) < share] = 0
    weight = torch.from_numpy(patterns.view(np.float32))
    with TemporaryDirectory() as name:
        files = write_cut(Path(name), weight, cuts, without_zeros=True)
        reader = FragmentReader(files)
        assert bits_of(reader.whole("master", "w")) == bits_of(weight)
        length = min(length, weight.numel() - start)
        assert bits_of(reader.read("master", "w", start, length)) == bits_of(weight[start : start + length])


def test_zeros_are_left_out_where_that_is_worth_it_and_only_there(folder: Path) -> None:
    empty, dense = torch.zeros(SAMPLE), torch.ones(SAMPLE)
    pieces = [Piece("master", "zeros", 0, empty), Piece("master", "dense", 0, dense)]
    shapes = {"zeros": empty.shape, "dense": dense.shape}
    facts = [write_rank(folder / str(drop), pieces, shapes, {}, without_zeros=drop) for drop in (False, True)]
    assert facts[0].bytes - facts[1].bytes > 3.5 * SAMPLE
    with safe_open(folder / "True", framework="pt") as file:
        assert [key for key in file.keys() if key.startswith(NONZERO)] == [f"{NONZERO}master/zeros"]  # noqa: SIM118


@given(weight=values(), start=st.integers(0, 60), length=st.integers(0, 60))
@settings(deadline=None)
def test_dropping_zeros_is_exact_to_the_bit(weight: Tensor, start: int, length: int) -> None:
    """Minus zero, denormals and what a NaN carries included; a range of it, too."""
    bits, kept = drop_zeros(weight)
    assert kept.numel() == sum(pattern != 0 for pattern in bits_of(weight))
    start = min(start, weight.numel())
    length = min(length, weight.numel() - start)
    assert bits_of(restore_zeros(bits, kept, start, length)) == bits_of(weight[start : start + length])


@pytest.mark.parametrize("without_zeros", [False, True])
def test_a_fragment_may_be_a_view_with_gaps_or_of_a_leaf_with_gradient(
    folder: Path, without_zeros: bool
) -> None:
    every_other = torch.arange(4 * SAMPLE, dtype=torch.float32)[::2] * (torch.arange(2 * SAMPLE) % 3 == 0)
    leaf = torch.zeros(SAMPLE, requires_grad=True)
    pieces = [Piece("master", "gaps", 0, every_other), Piece("master", "leaf", 0, leaf)]
    shapes = {"gaps": every_other.shape, "leaf": leaf.shape}
    write_rank(folder / "file", pieces, shapes, {}, without_zeros=without_zeros)
    reader = FragmentReader([folder / "file"])
    assert torch.equal(reader.whole("master", "gaps"), every_other)
    assert torch.equal(reader.whole("master", "leaf"), torch.zeros(SAMPLE))


def test_other_precisions_are_read_as_fp32_and_scalars_keep_their_shape(folder: Path) -> None:
    half = torch.tensor([1.5, -0.0, 3.0], dtype=torch.bfloat16)
    pieces = [Piece("master", "half", 0, half), Piece("master", "scalar", 0, torch.ones(1))]
    write_rank(folder / "file", pieces, {"half": half.shape, "scalar": torch.Size([])}, {})
    reader = FragmentReader([folder / "file"])
    assert bits_of(reader.whole("master", "half")) == bits_of(half.float())
    assert reader.whole("master", "scalar").shape == ()


def test_what_two_ranks_hold_does_not_stand_in_for_what_none_holds(folder: Path) -> None:
    weight = torch.arange(10, dtype=torch.float32)
    for rank in range(2):
        pieces = [Piece("master", "w", 0, weight[:5])]
        write_rank(folder / f"rank-{rank}", pieces, {"w": weight.shape}, {})
    reader = FragmentReader([folder / "rank-0", folder / "rank-1"])
    with pytest.raises(UserError, match="master/w: 5 of 10 values from 0 on; a shard is missing"):
        reader.whole("master", "w")
    write_rank(folder / "rank-2", [Piece("master", "w", 3, weight[3:])], {"w": weight.shape}, {})
    overlapping = FragmentReader([folder / "rank-0", folder / "rank-2"])
    assert torch.equal(overlapping.whole("master", "w"), weight)


def test_a_missing_shard_is_named_by_what_it_held(folder: Path) -> None:
    files = write_cut(folder, torch.arange(12, dtype=torch.float32), [4, 8], without_zeros=False)
    for missing in range(3):
        with pytest.raises(UserError, match=r"master/w: \d+ of 12 values from 0 on; a shard is missing"):
            FragmentReader(file for file in files if file != files[missing]).whole("master", "w")


def test_shards_of_two_checkpoints_are_not_mixed(folder: Path) -> None:
    for step in (1, 2):
        pieces = [Piece("master", "w", step, torch.ones(1))]
        write_rank(folder / f"rank-{step}", pieces, {"w": torch.Size([3])}, {}, origin=f"run a, step {step}")
    with pytest.raises(
        UserError, match="rank-2: belongs to run a, step 2, the shards before it to run a, step 1"
    ):
        FragmentReader([folder / "rank-1", folder / "rank-2"])


def test_a_truncated_or_foreign_file_is_named(folder: Path) -> None:
    path = folder / "rank-00000.safetensors"
    write_rank(path, [Piece("master", "w", 0, torch.ones(9))], {"w": torch.Size([9])}, {})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"rank-00000\.safetensors: not a shard of a checkpoint"):
            FragmentReader([path])
    save_file({"master/w": torch.ones(9)}, path)
    with pytest.raises(UserError, match="its format is None, this program reads weight-fragments-2"):
        FragmentReader([path])
    with pytest.raises(UserError, match="nowhere: not a shard"):
        FragmentReader([folder / "nowhere"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("starts", "[]"),
        ("starts", '{"master/w": 0, "master/absent": 0}'),
        ("lengths", "7"),
        ("shapes", '{"w": 9}'),
        ("shapes", "null"),
    ],
)
def test_metadata_of_another_kind_are_a_foreign_file(folder: Path, key: str, value: str) -> None:
    metadata = {
        "format": "weight-fragments-2",
        "origin": "",
        "starts": json.dumps({"master/w": 0}),
        "lengths": "{}",
        "shapes": json.dumps({"w": [9]}),
    }
    save_file({"master/w": torch.ones(9)}, folder / "file", metadata | {key: value})
    with pytest.raises(UserError, match="file: not a shard of a checkpoint"):
        FragmentReader([folder / "file"])


def test_kinds_and_the_other_tensors_of_a_rank(folder: Path) -> None:
    state = torch.arange(16, dtype=torch.uint8)
    for rank in range(2):
        pieces = [
            Piece(kind, name, rank, torch.ones(1))
            for kind in ("master", "exp_avg", "scorer.movement")
            for name in ("a.weight", "embedding.a.weight")
            if kind != "scorer.movement" or name == "a.weight"
        ]
        shapes = {"a.weight": torch.Size([2]), "embedding.a.weight": torch.Size([2])}
        path = weight_file(folder, rank)
        path.parent.mkdir(exist_ok=True)
        write_rank(path, pieces, shapes, {"random_cpu": state + rank})
    (folder / "weights" / ".nfs0001").write_bytes(b"of the file system")
    reader = open_weights(folder)
    assert reader.kinds("a.weight") == ["exp_avg", "master", "scorer.movement"]
    assert reader.kinds("embedding.a.weight") == ["exp_avg", "master"]
    assert reader.has("exp_avg", "a.weight")
    assert not reader.has("scorer.movement", "embedding.a.weight")
    for rank in range(2):
        assert list(reader.of_rank(rank)) == ["random_cpu"]
        assert torch.equal(reader.of_rank(rank)["random_cpu"], state + rank)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any stored type and of any shape, empty ones included; of any bits."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    dtype = draw(st.sampled_from(DTYPES))
    size = int(np.prod(shape)) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    flat = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
    return flat.view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(
    stored=st.dictionaries(
        st.text(min_size=1, max_size=6).filter(lambda n: n != "__metadata__"), tensors(), max_size=5
    ),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_the_safetensors_library_reads_what_we_write(
    stored: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    """Names and metadata of any letters, empty tensors, every type; size and checksum are the file's."""
    with TemporaryDirectory() as name:
        path = Path(name) / "file.safetensors"
        facts = write_tensors(path, stored, metadata)
        assert facts == FileFacts(path.stat().st_size, checksum_file(path))
        read = load_file(path)
        assert read.keys() == stored.keys()
        for key, tensor in stored.items():
            assert read[key].dtype == tensor.dtype
            assert read[key].shape == tensor.shape
            same = read[key].reshape(-1).view(torch.uint8) == tensor.reshape(-1).view(torch.uint8)
            assert bool(same.all())
        with safe_open(path, framework="pt") as file:
            assert (file.metadata() or {}) == metadata


def test_a_file_that_was_there_is_replaced_and_a_large_tensor_is_written_in_pieces(folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"x" * 30_000_000)
    big = torch.arange(5_000_001, dtype=torch.float32)
    facts = write_tensors(path, {"small": torch.ones(3, dtype=torch.uint8), "big": big}, {})
    assert facts == FileFacts(path.stat().st_size, checksum_file(path))
    assert torch.equal(load_file(path)["big"], big)
