"""Layer maps, projections, temperature: the pure pieces around the losses."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoConfig, PretrainedConfig

from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.distillation.matching import (
    evenly,
    match_teachers,
    projection_widths,
    student_taps,
    teacher_taps,
)
from sparse_pretrain.distillation.temperature import temperature_at
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.pretraining import HiddenTap, Taps
from sparse_pretrain.models.projections import Widths, build_projections


def section(**values: Any) -> DistillationSection:
    return DistillationSection.model_validate({"teacher": "t", **values})


def bert(layers: int, width: int) -> PretrainedConfig:
    return AutoConfig.for_model("bert", num_hidden_layers=layers, hidden_size=width, num_attention_heads=2)


def distilbert(layers: int, width: int) -> PretrainedConfig:
    return AutoConfig.for_model("distilbert", n_layers=layers, dim=width, n_heads=2)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (6, 12, [2, 4, 6, 8, 10, 12]),
        (3, 4, [1, 3, 4]),
        (4, 6, [2, 3, 5, 6]),
        (4, 2, [1, 1, 2, 2]),
        (5, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_even_spacing(student: int, teacher: int, expected: list[int]) -> None:
    assert [pair.teacher for pair in evenly(student, teacher)] == expected


@given(st.integers(1, 48), st.integers(1, 48))
def test_even_spacing_rises_and_ends_at_the_last_layer(student: int, teacher: int) -> None:
    pairs = evenly(student, teacher)
    layers = [pair.teacher for pair in pairs]
    assert [pair.student for pair in pairs] == list(range(1, student + 1))
    assert layers == sorted(layers)
    assert layers[0] >= 1
    assert layers[-1] == teacher
    assert all(abs(pair.teacher - max(1, pair.student * teacher / student)) <= 0.5 for pair in pairs)


def test_taps_and_projections_of_two_teachers() -> None:
    """The first is wider than the student: a projection a pair; the second is as wide: none."""
    wanted = section(
        teacher=["a", "b"], hidden={"layers": {2: 3}}, attention={"layers": {1: 2}}, embeddings={}
    )
    configs = (bert(4, 48), distilbert(3, 32))
    student = bert(2, 32)
    matches = match_teachers(wanted, student, configs)
    assert student_taps(matches) == Taps(
        hidden=(
            HiddenTap(0, "teacher-0-embeddings"),
            HiddenTap(2, "teacher-0-hidden-2-3"),
            HiddenTap(0),
            HiddenTap(2),
        ),
        attention=(1,),
    )
    assert teacher_taps(matches[0]) == Taps((HiddenTap(0), HiddenTap(3)), (2,))
    assert projection_widths(matches, student, configs) == {
        "teacher-0-embeddings": Widths(32, 48),
        "teacher-0-hidden-2-3": Widths(32, 48),
    }


def test_logits_alone_need_nothing_inside() -> None:
    matches = match_teachers(section(), bert(2, 32), (bert(4, 48),))
    assert student_taps(matches) == Taps()
    assert projection_widths(matches, bert(2, 32), (bert(4, 48),)) == {}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({3: 1}, "distillation.hidden.layers: 3: 1: there is no student layer 3; the student has 2 layers"),
        ({1: 5}, "distillation.hidden.layers: 1: 5: there is no teacher layer 5; the teacher has 4 layers"),
    ],
)
def test_a_layer_that_does_not_exist(layers: dict[int, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        match_teachers(section(hidden={"layers": layers}), bert(2, 32), (bert(4, 32),))
    assert str(error.value) == said


def test_projections_are_a_function_of_seed_and_name() -> None:
    widths = {"a": Widths(32, 48), "b": Widths(32, 48)}
    state = torch.get_rng_state()
    first = build_projections(widths, seed=3)
    again = build_projections({"b": Widths(32, 48)}, seed=3)
    assert (first["b"].weight == again["b"].weight).all()
    assert (first["a"].weight != first["b"].weight).any()
    assert (build_projections(widths, seed=4)["a"].weight != first["a"].weight).any()
    assert first["a"].bias is None
    assert float(first["a"].weight.detach().std()) == pytest.approx(32**-0.5, rel=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_moves_in_a_line_from_the_first_step_to_the_last() -> None:
    moving = section(temperature=4.0, temperature_end=1.0)
    assert [temperature_at(step, 4, moving) for step in range(4)] == [4.0, 3.0, 2.0, 1.0]
    assert temperature_at(0, 1, moving) == 4.0
    assert [temperature_at(step, 4, section(temperature=2.5)) for step in (0, 3)] == [2.5, 2.5]


def test_teacher_weights_become_shares() -> None:
    assert section(teacher=["a", "b", "c"]).shares == pytest.approx([1 / 3] * 3)
    assert section(teacher=["a", "b"], teacher_weights=[3, 1]).shares == [0.75, 0.25]
    assert section().shares == [1.0]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"teacher": 3}, "give a Hugging Face name or folder, or a list of them"),
    ({"teacher": []}, "give a Hugging Face name or folder, or a list of them"),
    ({"teacher": ["a", "b"], "teacher_weights": [1]}, "teacher_weights has 1 numbers for 2 teachers"),
    ({"logits_weight": 0}, "logits_weight = 0 leaves nothing to follow"),
    ({"precomputed": "x", "teacher": ["a", "b"]}, "precomputed logits are those of one teacher"),
    ({"precomputed": "x", "temperature_end": 1}, "precomputed logits belong to one temperature"),
    ({"precomputed": "x", "hidden": {}}, "remove hidden"),
    ({"precomputed": "x", "attention": {}}, "remove attention"),
    ({"precomputed": "x", "embeddings": {}}, "remove embeddings"),
]


@pytest.mark.parametrize(("values", "said"), MISTAKES)
def test_what_does_not_go_together(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        section(**values)
    assert len(error.value.errors()) == 1
    assert said in error.value.errors()[0]["msg"]
