"""Scores by hand, memory that survives saving and another cut, and plug-ins from other packages."""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from sparse_pretrain.config.pruning import ScorerSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.scorer import Part, Scorer
from sparse_pretrain.pruning.scorers.base import BaseScorer
from sparse_pretrain.pruning.scorers.build import build_scorer
from sparse_pretrain.pruning.scorers.entry_point import members
from sparse_pretrain.pruning.scorers.magnitude import Magnitude
from sparse_pretrain.pruning.scorers.movement import Movement
from sparse_pretrain.pruning.scorers.random_order import RandomOrder, splitmix64
from sparse_pretrain.pruning.scorers.undecayed_magnitude import UndecayedMagnitude

DEVICE = torch.device("cpu")


def cut(name: str, whole: Tensor, cuts: Sequence[int]) -> list[Part]:
    """The parts [0, cut), [cut, next cut) … of a flat weight."""
    return [
        Part(name, start, whole[start:end]) for start, end in itertools.pairwise((0, *cuts, whole.numel()))
    ]


def score_all(scorer: Scorer, parts: Sequence[Part]) -> Tensor:
    return torch.cat([scorer.score(part) for part in parts])


def resume(saved: Scorer, fresh: Scorer, parts: Sequence[Part]) -> None:
    """Save one scorer's memory and load it into another whose parts are cut differently."""
    pieces = list(saved.tensors())
    assert {kind for kind, *_ in pieces} <= set(saved.kinds()) == set(fresh.kinds())
    fresh.load_state_dict(saved.state_dict())
    whole: dict[tuple[str, str], dict[int, float]] = {}
    for kind, name, start, values in pieces:
        assert values.dtype == torch.float32
        whole.setdefault((kind, name), {}).update(enumerate(values.tolist(), start))
    for part in parts:
        for kind in fresh.kinds():
            if known := whole.get((kind, part.name)):
                places = range(part.start, part.start + part.master.numel())
                fresh.load_tensor(kind, part, torch.tensor([known[place] for place in places]))


# --- magnitude -----------------------------------------------------------------------------------


def test_magnitude_is_the_absolute_value_and_needs_nothing() -> None:
    weight = torch.tensor([-2.0, 0.5, -0.0, 3.0])
    scorer = Magnitude()
    assert scorer.score(Part("w", 0, weight)).tolist() == [2.0, 0.5, 0.0, 3.0]
    assert weight.tolist() == [-2.0, 0.5, 0.0, 3.0]
    assert not scorer.needs_gradients
    assert list(scorer.tensors()) == []
    assert scorer.kinds() == ()
    assert scorer.state_dict() == {}
    with pytest.raises(ValueError, match="Magnitude keeps nothing called 'x'"):
        scorer.load_tensor("x", Part("w", 0, weight), weight)


# --- magnitude without the decay -----------------------------------------------------------------


def test_decay_of_a_pruned_weight_is_undone() -> None:
    """A pruned weight that only decays keeps its score; a kept one is judged by what it is."""
    master = torch.tensor([4.0, 3.0, -2.0, 1.0])
    part = Part("w", 0, master)
    scorer = UndecayedMagnitude()
    keep = torch.tensor([True, True, False, False])
    assert scorer.score(part).tolist() == [4.0, 3.0, 2.0, 1.0]
    scorer.after_update(part, keep)
    for step in range(200):
        rate = 0.01 * (1 + step % 3)
        master.mul_(1 - rate * 0.1)
        scorer.after_step(rate, 0.1)
    scores = scorer.score(part)
    assert master[2].item() > -1.5
    assert scores[:2].tolist() == master[:2].tolist()
    assert scores[2:].tolist() == pytest.approx([2.0, 1.0], rel=1e-5)


def test_decay_counts_from_the_update_that_pruned_until_the_one_that_brought_back() -> None:
    master = torch.ones(3)
    part = Part("w", 0, master)
    scorer = UndecayedMagnitude()
    # First pruned: 0 alone; then 0 and 1; then 1 alone, as 0 comes back.
    for keep in ([False, True, True], [False, False, True], [True, False, True]):
        scorer.after_update(part, torch.tensor(keep))
        scorer.after_step(0.5, 0.5)
    # Three updates, a factor 0.75 after each: 1 was pruned for two of them.
    assert scorer.score(part).tolist() == pytest.approx([1.0, 0.75**-2, 1.0], rel=1e-6)
    scorer.after_update(part, torch.tensor([False, False, True]))
    assert scorer.score(part).tolist() == pytest.approx([1.0, 0.75**-2, 1.0], rel=1e-6)


@given(first=st.integers(0, 10), second=st.integers(0, 10))
def test_undecayed_magnitude_resumes_bit_for_bit_with_another_cut(first: int, second: int) -> None:
    weight = torch.randn(10, generator=torch.Generator().manual_seed(0))
    scorer, parts = UndecayedMagnitude(), cut("w", weight, [first])
    for seed in range(3):
        keep = torch.rand(10, generator=torch.Generator().manual_seed(seed)) > 0.5
        for part in parts:
            scorer.after_update(part, keep[part.start : part.start + part.master.numel()])
        scorer.after_step(1e-2, 0.3)
    fresh, others = UndecayedMagnitude(), cut("w", weight, [second])
    resume(scorer, fresh, others)
    assert score_all(fresh, others).equal(score_all(scorer, parts))


def test_undecayed_magnitude_holds_no_memory_before_the_first_update() -> None:
    scorer = UndecayedMagnitude()
    scorer.after_step(1e-3, 0.01)
    assert list(scorer.tensors()) == []
    fresh = UndecayedMagnitude()
    resume(scorer, fresh, cut("w", torch.ones(4), [2]))
    assert fresh.state_dict() == scorer.state_dict()


def test_decay_that_turns_weights_around_is_refused() -> None:
    with pytest.raises(UserError, match=r"exclude_weight_decay: .* must be below 1, is 2 x 0\.5"):
        UndecayedMagnitude().after_step(2.0, 0.5)


# --- movement --------------------------------------------------------------------------------------


def test_movement_adds_minus_gradient_times_weight_over_the_window() -> None:
    master = torch.tensor([1.0, -2.0, 3.0])
    part = Part("w", 0, master)
    scorer = Movement()
    assert scorer.needs_gradients
    scorer.observe(part, torch.tensor([0.5, 0.5, -1.0]))
    master.copy_(torch.tensor([2.0, -2.0, 4.0]))
    scorer.observe(part, torch.tensor([1.0, 0.25, 0.0], dtype=torch.bfloat16))
    # By hand: -(0.5*1 + 1*2), -(0.5*-2 + 0.25*-2), -(-1*3 + 0*4).
    assert scorer.score(part).tolist() == [-2.5, 1.5, 3.0]
    assert scorer.score(part).dtype == torch.float32


def test_weights_that_shrink_go_before_weights_that_grow() -> None:
    """Gradient descent moves against the gradient: the first weight towards zero, the second away."""
    part = Part("w", 0, torch.tensor([1.0, 0.1]))
    scorer = Movement()
    scorer.observe(part, torch.tensor([0.3, -0.3]))
    shrinking, growing = scorer.score(part).tolist()
    assert shrinking < 0 < growing


def test_a_window_without_steps_goes_by_magnitude_and_the_next_one_starts_from_nothing() -> None:
    part = Part("w", 0, torch.tensor([1.0, -2.0]))
    scorer = Movement()
    assert scorer.score(part).tolist() == [1.0, 2.0]
    scorer.observe(part, torch.tensor([5.0, 5.0]))
    scorer.after_update(part, torch.tensor([True, True]))
    assert scorer.score(part).tolist() == [1.0, 2.0]
    assert list(scorer.tensors()) == []
    scorer.observe(part, torch.tensor([1.0, 1.0]))
    assert scorer.score(part).tolist() == [-1.0, 2.0]


def test_scores_may_be_written_to() -> None:
    part = Part("w", 0, torch.tensor([1.0, -2.0]))
    scorer = Movement()
    scorer.observe(part, torch.tensor([1.0, 1.0]))
    scorer.score(part).fill_(-torch.inf)
    assert scorer.score(part).tolist() == [-1.0, 2.0]


@given(first=st.integers(0, 10), second=st.integers(0, 10), steps=st.integers(0, 3))
def test_movement_resumes_bit_for_bit_with_another_cut(first: int, second: int, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, generator=generator)
    scorer, parts = Movement(), cut("w", weight, [first])
    for _ in range(steps):
        gradient = torch.randn(10, generator=generator)
        for part in parts:
            scorer.observe(part, gradient[part.start : part.start + part.master.numel()])
    fresh, others = Movement(), cut("w", weight, [second])
    resume(scorer, fresh, others)
    assert score_all(fresh, others).equal(score_all(scorer, parts))


def test_memory_that_does_not_fit_is_refused() -> None:
    part = Part("w", 4, torch.ones(3))
    with pytest.raises(
        ValueError, match=r"movement/w: \[2\] values do not fit movement of \[3\] weights from 4"
    ):
        Movement().load_tensor("movement", part, torch.ones(2))
    with pytest.raises(ValueError, match="fisher/w"):
        Movement().load_tensor("fisher", part, torch.ones(3))


# --- random ----------------------------------------------------------------------------------------


def test_splitmix64_equals_its_published_outputs() -> None:
    """First outputs for seed 0 (prng.di.unimi.it/splitmix64.c), and the same again from the middle."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in splitmix64(0, 0, 3, DEVICE).tolist()] == expected
    assert splitmix64(0, 1, 2, DEVICE).tolist() == splitmix64(0, 0, 3, DEVICE)[1:].tolist()


def splitmix64_by_hand(key: int, index: int) -> int:
    """The same in Python's own integers."""
    state = (key + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


@given(key=st.integers(-(2**63), 2**63 - 1), start=st.integers(0, 2**40))
def test_splitmix64_equals_plain_integers(key: int, start: int) -> None:
    found = [value % 2**64 for value in splitmix64(key, start, 3, DEVICE).tolist()]
    assert found == [splitmix64_by_hand(key, start + place) for place in range(3)]


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 50), max_size=4))
def test_random_scores_do_not_depend_on_the_cut_nor_on_the_weights(seed: int, cuts: list[int]) -> None:
    whole = RandomOrder(seed).score(Part("w", 0, torch.zeros(50)))
    parts = cut("w", torch.randn(50), sorted(cuts))
    assert score_all(RandomOrder(seed), parts).equal(whole)


def test_random_scores_are_uniform_and_differ_by_seed_and_name() -> None:
    draw = {
        (seed, name): RandomOrder(seed).score(Part(name, 0, torch.zeros(100_000)))
        for seed in (0, 1)
        for name in ("a", "b")
    }
    for scores in draw.values():
        assert scores.dtype == torch.float32
        assert scores.min() >= 0
        assert scores.max() < 1
        # Standard error of each of ten bins: 95 of 10,000.
        assert torch.histc(scores, 10, 0, 1).sub(10_000).abs().max() < 500
    for one, other in itertools.combinations(draw.values(), 2):
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.02
    # Golden: a changed order would make a resumed run jump to other masks.
    assert draw[0, "a"][:3].tolist() == [0.38865530490875244, 0.3056708574295044, 0.30890923738479614]


# --- the recipe, and other packages ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"kind": "magnitude"}, Magnitude),
        ({"kind": "magnitude", "exclude_weight_decay": True}, UndecayedMagnitude),
        ({"kind": "movement"}, Movement),
        ({"kind": "random", "seed": 3}, RandomOrder),
    ],
)
def test_recipes_build_what_they_say(section: dict[str, object], expected: type) -> None:
    scorer = build(section)
    assert type(scorer) is expected
    assert all(hasattr(scorer, member) for member in members())


def build(section: dict[str, object]) -> Scorer:
    return build_scorer(TypeAdapter(ScorerSection).validate_python(section))


PLUGIN = """
from sparse_pretrain.pruning.scorers.base import BaseScorer

class Constant(BaseScorer):
    def __init__(self, value: float) -> None:
        self.value = value
    def score(self, part):
        return part.master * 0 + self.value

class NoScorer:
    needs_gradients = False
    def score(self, part):
        return part.master
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is installed as pip would: a module and a dist-info folder on the path."""
    (tmp_path / "constant_scorer.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "constant_scorer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: constant-scorer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sparse_pretrain.scorers]\n"
        "constant = constant_scorer:Constant\n"
        "broken = constant_scorer:Missing\n"
        "poor = constant_scorer:NoScorer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "constant_scorer", raising=False)


@pytest.mark.usefixtures("plugin")
def test_a_scorer_of_another_package() -> None:
    scorer = build({"kind": "custom", "name": "constant", "options": {"value": 7}})
    assert isinstance(scorer, BaseScorer)
    assert scorer.score(Part("w", 0, torch.ones(2))).tolist() == [7.0, 7.0]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("constnat", {}, r"name = constnat: no such entry point .*known: broken, constant, poor"),
        ("constant", {"vlaue": 7}, r"scorer\.options: constant_scorer:Constant does not take them"),
        ("broken", {}, r"name = broken: cannot import constant_scorer:Missing"),
        ("poor", {}, r"returns a NoScorer without observe, after_step, after_update"),
    ],
)
def test_mistakes_of_plug_ins_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"kind": "custom", "name": name, "options": options})


def test_without_any_plug_in_the_message_says_so() -> None:
    with pytest.raises(UserError, match="no installed package offers any"):
        build({"kind": "custom", "name": "fisher"})
