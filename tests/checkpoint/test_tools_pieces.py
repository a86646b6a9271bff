"""The pieces under the checkpoint commands: spans, lazy tensors, lines of text."""

import itertools
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.coverage import problem_with_spans
from sparse_pretrain.checkpoint.listing import aligned
from sparse_pretrain.checkpoint.tensor_file import LazyTensor, write_tensors
from sparse_pretrain.files import show_bytes


@given(st.integers(1, 50), st.sets(st.integers(1, 49)), st.randoms())
def test_any_cut_of_a_parameter_covers_it_and_a_lost_or_doubled_part_does_not(
    total: int, cuts: set[int], random: object
) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < total), total]
    spans = list(itertools.pairwise(places))
    random.shuffle(spans)  # type: ignore[attr-defined]
    assert problem_with_spans([*spans, (3, 3)], total) is None
    assert problem_with_spans(spans[1:], total) is not None
    assert problem_with_spans([*spans, spans[0]], total) is not None


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([], "no rank has elements 0 to 9"),
        ([(0, 4), (6, 10)], "no rank has elements 4 to 5"),
        ([(0, 9)], "no rank has elements 9 to 9"),
        ([(0, 6), (4, 10)], "two ranks have elements 4 to 5"),
        ([(0, 10), (2, 3)], "two ranks have elements 2 to 2"),
        ([(0, 12)], "there are elements up to 11, the parameter has 10"),
    ],
)
def test_what_is_wrong_with_fragments_is_told_by_element(spans: list[tuple[int, int]], problem: str) -> None:
    assert problem_with_spans(spans, 10) == problem


def test_lazy_tensors_make_the_same_file_and_only_one_is_alive_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"t{number}": torch.randn(number, 3) for number in range(4)}
    tensors["half"] = torch.randn(5).to(torch.bfloat16)
    loaded: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def load(name: str) -> torch.Tensor:
        nonlocal most
        most = max(most, sum(each() is not None for each in loaded))
        tensor = tensors[name].clone()
        loaded.append(weakref.ref(tensor))
        return tensor

    lazy = {
        name: LazyTensor(tensor.dtype, tensor.shape, lambda name=name: load(name))  # type: ignore[misc]
        for name, tensor in tensors.items()
    }
    facts = write_tensors(tmp_path / "lazy", lazy, {"format": "pt"})
    assert facts == write_tensors(tmp_path / "plain", tensors, {"format": "pt"})
    assert facts.xxh3 == checksum_file(tmp_path / "lazy") == checksum_file(tmp_path / "plain")
    assert facts.bytes == (tmp_path / "lazy").stat().st_size
    assert len(loaded) == len(tensors)
    # The one before may still be under its checksum.
    assert most <= 1
    stored = load_file(tmp_path / "lazy")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "lazy", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("other", [torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(3, 2)])
def test_a_lazy_tensor_that_is_not_what_it_was_announced_to_be_is_refused(
    other: torch.Tensor, tmp_path: Path
) -> None:
    lazy = LazyTensor(torch.float32, torch.Size([2, 3]), lambda: other)
    with pytest.raises(ValueError, match=r"w: .* announced as torch.float32 of shape \[2, 3\]"):
        write_tensors(tmp_path / "file", {"w": lazy}, {})


def test_a_lazy_tensor_may_be_a_view_of_another(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    lazy = LazyTensor(torch.float32, torch.Size([3, 2]), lambda: whole.t())
    write_tensors(tmp_path / "file", {"w": lazy}, {})
    assert torch.equal(load_file(tmp_path / "file")["w"], whole.t())


def test_sizes_and_lines_for_people() -> None:
    assert [show_bytes(count) for count in (0, 340_000, 1_500_000, 2 * 10**9, 3 * 10**12)] == [
        "0.0 MB",
        "0.3 MB",
        "1.5 MB",
        "2.0 GB",
        "3.0 TB",
    ]
    assert aligned([("a", "long", "x"), ("bcd", "e", "")]) == ["a    long  x", "bcd  e"]
