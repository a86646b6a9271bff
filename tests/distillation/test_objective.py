"""The objective against the same numbers in plain torch, and what it never materialises."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.data.batch import Batch, Counts
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.distillation.losses import distillation_loss, masked_language_loss, rows_per_block
from sparse_pretrain.distillation.matching import HiddenPair, LayerPair, Match
from sparse_pretrain.distillation.objective import GlobalLosses, Objective, Parts
from sparse_pretrain.distillation.top_logits import top_logits
from sparse_pretrain.models.pretraining import HiddenTap, Predictions

VOCABULARY = 50
ROWS, LENGTH = 2, 6
# The second row ends with two padded tokens.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
POSITIONS = torch.nonzero(MASK.reshape(-1)).squeeze(1)
TOTALS = Counts(predicted=7, real=31, sequences=10)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch() -> Batch:
    """Ten real positions, the tokens at three of them to predict."""
    labels = torch.full((10,), IGNORED)
    labels[[1, 4, 8]] = torch.tensor([3, 0, 49])
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    return Batch(ids, MASK, None, POSITIONS, labels, None, Counts(3, 10, 2))


def answer(seed: int, width: int = 4, heads: int = 2, projection: str | None = None) -> Predictions:
    """Logits, embeddings, the output of layer 1 and its attention."""
    scores = random(ROWS, heads, LENGTH, LENGTH, seed=seed + 1).masked_fill(
        MASK[:, None, None, :] == 0, float("-inf")
    )
    return Predictions(
        random(10, VOCABULARY, seed=seed).requires_grad_(),
        None,
        {
            HiddenTap(layer, projection): random(ROWS, LENGTH, width, seed=seed + 2 + layer)
            for layer in (0, 1)
        },
        {1: torch.softmax(scores, dim=-1)},
    )


def pair(projection: str | None = None) -> Match:
    return Match(
        hidden=(HiddenPair(HiddenTap(1, projection), HiddenTap(1)),),
        attention=(LayerPair(1, 1),),
        embeddings=(HiddenPair(HiddenTap(0, projection), HiddenTap(0)),),
    )


def by_hand(
    student: Predictions, teacher: Predictions, temperature: float, positions: str
) -> dict[str, Tensor]:
    """Every part with explicit loops over real tokens."""
    rows = range(10) if positions == "all" else (1, 4, 8)
    divergence = sum(
        torch.sum(
            F.softmax(teacher.tokens[row] / temperature, -1)
            * (
                F.log_softmax(teacher.tokens[row] / temperature, -1)
                - F.log_softmax(student.tokens[row] / temperature, -1)
            )
        )
        for row in rows
    )
    real = [(row, column) for row in range(ROWS) for column in range(LENGTH) if MASK[row, column]]
    distance = {}
    for layer in (0, 1):
        mine = next(value for tap, value in student.hidden.items() if tap.layer == layer)
        its = teacher.hidden[HiddenTap(layer)]
        distance[layer] = sum(((mine[place] - its[place]) ** 2).mean() for place in real)
    mine, its = student.attention[1], teacher.attention[1]
    if mine.shape[1] != its.shape[1]:
        mine, its = mine.mean(1, keepdim=True), its.mean(1, keepdim=True)
    keys = MASK.sum(dim=1)
    maps = sum(
        ((mine[row, :, query, : keys[row]] - its[row, :, query, : keys[row]]) ** 2).mean()
        for row, query in real
    )
    count = TOTALS.real if positions == "all" else TOTALS.predicted
    return {
        "logits": temperature**2 * divergence / count,
        "hidden": distance[1] / TOTALS.real,
        "attention": maps / TOTALS.real,
        "embeddings": distance[0] / TOTALS.real,
    }


@pytest.mark.parametrize("positions", ["all", "masked"])
@pytest.mark.parametrize("heads", [2, 3])
def test_every_part_with_two_teachers(positions: str, heads: int) -> None:
    section = DistillationSection.model_validate(
        {
            "teacher": ["a", "b"],
            "teacher_weights": [3, 1],
            "mlm_weight": 0.3,
            "kd_weight": 0.7,
            "logits_weight": 0.8,
            "positions": positions,
            "hidden": {"weight": 2.0},
            "attention": {"weight": 3.0},
            "embeddings": {"weight": 5.0},
        }
    )
    student, teachers = answer(1), [answer(20), answer(30, heads=heads)]
    found = Objective(section, (pair(), pair()))(student, teachers, batch(), TOTALS, temperature=1.7)
    each = [by_hand(student, teacher, 1.7, positions) for teacher in teachers]
    for name in Parts._fields:
        mean = 0.75 * each[0][name] + 0.25 * each[1][name]
        torch.testing.assert_close(getattr(found.parts, name), mean.detach(), rtol=1e-5, atol=1e-7)
    kd = sum(
        weight * (0.75 * each[0][name] + 0.25 * each[1][name])
        for name, weight in zip(Parts._fields, (0.8, 2.0, 3.0, 5.0), strict=True)
    )
    mlm = F.cross_entropy(student.tokens, batch().labels, ignore_index=IGNORED, reduction="sum") / 7
    torch.testing.assert_close(found.distillation, kd.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.total, 0.3 * mlm + 0.7 * kd, rtol=1e-5, atol=0)
    (mine,) = torch.autograd.grad(found.total, student.tokens)
    (reference,) = torch.autograd.grad(0.3 * mlm + 0.7 * kd, student.tokens)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-7)


def test_logits_alone_have_their_old_meaning_and_no_teacher_means_mlm_alone() -> None:
    """kd_loss is the unweighted mean over all real tokens."""
    section = DistillationSection(teacher="t", mlm_weight=0.3, kd_weight=0.7)
    student, teacher = answer(1), answer(20)
    found = Objective(section)(student, [teacher], batch(), TOTALS, temperature=2.0)
    mlm = masked_language_loss(student.tokens, batch().labels) / 7
    kd = distillation_loss(student.tokens, teacher.tokens, 2.0) / 31
    torch.testing.assert_close(found.total, 0.3 * mlm + 0.7 * kd, rtol=0, atol=0)
    torch.testing.assert_close(
        (found.mlm, found.distillation, found.parts.logits), (mlm, kd, kd), rtol=0, atol=0
    )
    alone = Objective(None)(student, [], batch(), TOTALS)
    torch.testing.assert_close(alone.total, mlm, rtol=0, atol=0)


def test_parts_that_a_run_has() -> None:
    section = DistillationSection.model_validate({"teacher": "t", "logits_weight": 0, "hidden": {}})
    assert Objective(section).part_names == ("hidden",)
    assert Objective(DistillationSection(teacher="t")).part_names == ("logits",)
    assert Objective(None).part_names == ()


def test_agreement_counts_predicted_positions_where_the_first_choice_is_the_same() -> None:
    """Two of the batch's three agree; two elsewhere do not count. The global batch predicts seven."""
    student, teacher = answer(1), answer(20)
    logits = teacher.tokens.detach().clone()
    best = student.tokens.argmax(dim=-1)
    for row in (1, 8, 0, 9):
        logits[row, best[row]] = 99.0
    logits[4, best[4]] = -99.0
    teacher = teacher._replace(tokens=logits)
    section = DistillationSection(teacher="t")
    top = top_logits(logits, 5, 2.0)
    for its in (teacher, top):
        asked = Objective(section)(student, [its], batch(), TOTALS, 2.0, agreement=True)
        assert float(asked.agreement) == pytest.approx(2 / 7)
    assert float(Objective(section)(student, [teacher], batch(), TOTALS, 2.0).agreement) == 0


def test_a_batch_that_predicts_nothing_follows_nothing_at_masked_positions() -> None:
    """Such a batch has one position all the same (heads of all ranks must run); it must not count."""
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    empty = Batch(ids, MASK, None, torch.zeros(1).long(), torch.tensor([IGNORED]), None, Counts(0, 10, 2))
    section = DistillationSection(teacher="t", positions="masked")
    student = Predictions(random(1, VOCABULARY, seed=1).requires_grad_(), None)
    teacher = Predictions(random(1, VOCABULARY, seed=2), None)
    stored = top_logits(teacher.tokens, 5, 2.0)
    for its in (teacher, stored, type(stored)(*(column[:0] for column in stored))):
        losses = Objective(section)(student, [its], empty, TOTALS, 2.0, agreement=True)
        losses.total.backward()
        assert float(losses.total.detach()) == 0
        assert student.tokens.grad is not None
        assert not student.tokens.grad.any()


def test_numbers_survive_the_sum_over_ranks() -> None:
    section = DistillationSection.model_validate({"teacher": "t", "hidden": {}, "embeddings": {}})
    losses = Objective(section, (pair(),))(answer(1), [answer(20)], batch(), TOTALS, 2.0, agreement=True)
    read = GlobalLosses.read((2 * losses.numbers()).tolist())
    assert read.total == pytest.approx(2 * float(losses.total.detach()))
    assert read.distillation == pytest.approx(2 * float(losses.distillation))
    assert read.agreement == pytest.approx(2 * float(losses.agreement))
    expected = {name: 2 * float(getattr(losses.parts, name)) for name in Parts._fields}
    assert read.parts == pytest.approx(expected)


class LargestFp32(TorchDispatchMode):
    """Remembers the most rows of any fp32 tensor as wide as the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.rows = 0
        self._vocabulary = vocabulary

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            wide = isinstance(value, Tensor) and value.ndim > 0 and value.shape[-1] == self._vocabulary
            if wide and value.dtype == torch.float32:
                self.rows = max(self.rows, value.numel() // self._vocabulary)
        return result


@pytest.mark.parametrize("stored", [False, True])
def test_no_fp32_matrix_of_all_positions_and_the_whole_vocabulary(stored: bool) -> None:
    """bf16 logits of 2,000 positions: forward and backward of all losses see only blocks in fp32."""
    vocabulary, positions = 1009, 2000
    student = random(positions, vocabulary, seed=1).bfloat16().requires_grad_()
    teacher = random(positions, vocabulary, seed=2).bfloat16()
    labels = torch.full((positions,), IGNORED)
    labels[::2] = 7
    ids = torch.zeros(4, 500, dtype=torch.int64)
    big = Batch(ids, None, None, torch.arange(positions), labels, None, Counts(1000, positions, 4))
    section = DistillationSection(teacher="t")
    with LargestFp32(vocabulary) as naive:
        F.log_softmax(student.float(), dim=-1)
    assert naive.rows == positions
    with LargestFp32(vocabulary) as seen:
        its = top_logits(teacher, 16, 2.0) if stored else Predictions(teacher, None)
        losses = Objective(section)(Predictions(student, None), [its], big, TOTALS, 2.0, agreement=True)
        losses.total.backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
    assert 0 < seen.rows <= rows_per_block(teacher) < positions
