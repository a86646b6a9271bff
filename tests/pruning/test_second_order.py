"""The seam for second-order scores: a small block-Fisher scorer, written against `Scorer` alone.

Optimal BERT Surgeon (Kurtic et al. 2022, section 3; WoodFisher, Singh & Alistarh 2020): removing weight i
raises the loss by about

    w_i^2 / (2 [F^-1]_ii),        F = lambda I + 1/m sum over m steps of g g^T,

with the empirical Fisher matrix F restricted to blocks of b consecutive weights. What the seam asks of
such a scorer, and what it gets:

* Blocks lie on the weight's own grid, [0, b), [b, 2b), …, wherever parts begin and end.
* Memory is b numbers a weight: number j of weight i is the sum of g_i g_(j-th of i's block). As b kinds of
  one number each, it is sharded, saved and cut anew like everything else.
* A rank sees the gradients of its own part only. Where a part ends inside a block, products across the cut
  stay zero and the block falls into two smaller ones, which is a block-diagonal approximation, too. With
  parts that end on the grid, scores do not depend on the number of ranks at all; else those of at most one
  block at each end of a part do.
* A checkpoint cut anew keeps what was summed: products across an old cut start from zero, those across a
  new one are ignored. Either way every block stays a sum of positive semi-definite matrices.

A scorer only ranks weights. The surgeon's other half, the update of the weights that stay, is training's.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sparse_pretrain.checkpoint.shards import FragmentReader, write_rank
from sparse_pretrain.pruning.scorer import Part, Scorer

BLOCK, DAMPENING = 3, 0.05


class BlockFisher:
    """The scorer described above. Memory: float32 [b, length] a part, and the number of steps."""

    needs_gradients = True

    def __init__(self, block: int, dampening: float) -> None:
        self._block = block
        self._dampening = dampening
        self._steps = 0
        self._products: dict[tuple[str, int], Tensor] = {}

    def observe(self, part: Part, gradient: Tensor) -> None:
        mine = gradient.float()
        grid = self._on_grid(mine, part.start)
        products = self._of(part)
        for place in range(self._block):
            partner = grid[:, place].repeat_interleave(self._block)
            first = part.start % self._block
            products[place].addcmul_(mine, partner[first : first + mine.numel()])

    def after_step(self, learning_rate: float, weight_decay: float) -> None:
        self._steps += 1

    def score(self, part: Part) -> Tensor:
        rows = torch.stack([self._on_grid(row, part.start) for row in self._of(part).double()], dim=2)
        # Places of the grid that lie outside the part, or outside the weight, are other ranks'.
        inside = self._on_grid(torch.ones_like(part.master, dtype=torch.float64), part.start)
        rows = rows * inside[:, :, None] * inside[:, None, :] / max(self._steps, 1)
        fisher = rows + self._dampening * torch.eye(self._block, dtype=torch.float64)
        inverse = torch.linalg.inv(fisher).diagonal(dim1=1, dim2=2).reshape(-1)
        first = part.start % self._block
        return part.master.double().square().div(2 * inverse[first : first + part.master.numel()]).float()

    def after_update(self, part: Part, keep: Tensor) -> None:
        """Curvature changes slowly: go on summing."""

    def tensors(self) -> Iterator[tuple[str, str, int, Tensor]]:
        for (name, start), products in self._products.items():
            for kind, row in zip(self.kinds(), products, strict=True):
                yield kind, name, start, row

    def load_tensor(self, kind: str, part: Part, values: Tensor) -> None:
        self._of(part)[self.kinds().index(kind)] = values

    def kinds(self) -> tuple[str, ...]:
        return tuple(f"fisher-{place}" for place in range(self._block))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = int(state["steps"])

    def _of(self, part: Part) -> Tensor:
        key = part.name, part.start
        if key not in self._products:
            self._products[key] = torch.zeros(self._block, part.master.numel())
        return self._products[key]

    def _on_grid(self, values: Tensor, start: int) -> Tensor:
        """Put a part's values on the weight's grid of blocks, [blocks, b], zero outside the part."""
        before = start % self._block
        after = -(before + values.numel()) % self._block
        grid: Tensor = torch.nn.functional.pad(values, (before, after)).reshape(-1, self._block)
        return grid


def reference(
    weight: NDArray[Any], gradients: Sequence[NDArray[Any]], cuts: Sequence[Sequence[int]]
) -> NDArray[Any]:
    """The same from one dense matrix: products within a block that no cut in force separated.

    Args:
        weight: [n].
        gradients: [n] each.
        cuts: by gradient, where the weight was cut when it was seen; the last entry is where it is cut
            when it is scored.
    """
    fisher = np.zeros((weight.size, weight.size))
    for gradient, places in zip(gradients, cuts, strict=False):
        fisher += np.outer(gradient, gradient) * together(weight.size, places)
    fisher = fisher * together(weight.size, cuts[-1]) / max(len(gradients), 1)
    inverse = np.linalg.inv(fisher + DAMPENING * np.eye(weight.size))
    scores: NDArray[Any] = weight**2 / (2 * np.diag(inverse))
    return scores


def together(size: int, cuts: Sequence[int]) -> NDArray[Any]:
    block = np.arange(size) // BLOCK
    part = np.searchsorted(np.asarray(cuts), np.arange(size), side="right")
    pairs: NDArray[Any] = (block[:, None] == block) & (part[:, None] == part)
    return pairs


def parts_of(weight: Tensor, cuts: Sequence[int]) -> list[Part]:
    edges = itertools.pairwise((0, *cuts, weight.numel()))
    return [Part("w", start, weight[start:end]) for start, end in edges if end > start]


def watch(scorer: Scorer, parts: Sequence[Part], gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        for part in parts:
            scorer.observe(part, gradient[part.start : part.start + part.master.numel()])
        scorer.after_step(1e-3, 0.01)


def scores_of(scorer: Scorer, parts: Sequence[Part]) -> NDArray[Any]:
    return torch.cat([scorer.score(part) for part in parts]).numpy()


def random_case(size: int, steps: int) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, generator=generator), [
        torch.randn(size, generator=generator) for _ in range(steps)
    ]


@given(size=st.integers(1, 14), steps=st.integers(0, 5), cuts=st.lists(st.integers(0, 14), max_size=3))
def test_scores_equal_a_dense_inverse(size: int, steps: int, cuts: list[int]) -> None:
    places = sorted({min(cut, size) for cut in cuts})
    weight, gradients = random_case(size, steps)
    scorer, parts = BlockFisher(BLOCK, DAMPENING), parts_of(weight, places)
    watch(scorer, parts, gradients)
    expected = reference(
        weight.double().numpy(), [g.double().numpy() for g in gradients], [places] * (steps + 1)
    )
    np.testing.assert_allclose(scores_of(scorer, parts), expected, rtol=1e-4)


def test_by_hand() -> None:
    """F = [[1 + d, 1], [1, 1 + d]] from one gradient (1, 1): [F^-1]_ii = (1 + d) / ((1 + d)^2 - 1)."""
    weight = torch.tensor([1.0, 2.0])
    scorer, parts = BlockFisher(2, 1.0), parts_of(weight, [])
    watch(scorer, parts, [torch.ones(2)])
    assert scores_of(scorer, parts).tolist() == pytest.approx([3 / 4, 3], rel=1e-6)


def test_a_small_weight_that_the_loss_feels_stays_before_a_large_one_that_it_does_not() -> None:
    weight = torch.tensor([0.1, 1.0])
    scorer, parts = BlockFisher(2, 1e-4), parts_of(weight, [])
    watch(scorer, parts, [torch.tensor([3.0, 0.01])])
    felt, unfelt = scores_of(scorer, parts)
    assert felt > unfelt


def test_cuts_on_the_grid_change_nothing() -> None:
    weight, gradients = random_case(12, 4)
    found = []
    for cuts in ([], [3], [3, 6, 9]):
        scorer, parts = BlockFisher(BLOCK, DAMPENING), parts_of(weight, cuts)
        watch(scorer, parts, gradients)
        found.append(scores_of(scorer, parts).tolist())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([6], [3, 9]), ([], [4]), ([5], []), ([4, 8], [7]), ([1, 2, 3], [11])]
)
def test_checkpoints_come_back_for_any_number_of_ranks(
    before: list[int], after: list[int], tmp_path: Path
) -> None:
    """Through the real files: steps with one cut, a resume with another, more steps, then scores."""
    weight, gradients = random_case(13, 6)
    saved = BlockFisher(BLOCK, DAMPENING)
    watch(saved, parts_of(weight, before), gradients[:4])
    shapes = {"w": weight.shape}
    files = []
    for part in parts_of(weight, before):
        mine = (piece for piece in saved.tensors() if piece[2] == part.start)
        files.append(tmp_path / f"rank-{part.start}.safetensors")
        write_rank(files[-1], mine, shapes, {})
    reader = FragmentReader(files)

    fresh, parts = BlockFisher(BLOCK, DAMPENING), parts_of(weight, after)
    fresh.load_state_dict(saved.state_dict())
    for part in parts:
        for kind in fresh.kinds():
            fresh.load_tensor(kind, part, reader.read(kind, part.name, part.start, part.master.numel()))
    watch(fresh, parts, gradients[4:])
    cuts = [before] * 4 + [after] * 3
    expected = reference(weight.double().numpy(), [g.double().numpy() for g in gradients], cuts)
    np.testing.assert_allclose(scores_of(fresh, parts), expected, rtol=1e-4)
