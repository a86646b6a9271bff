"""Which student layer follows which teacher layer, and where a projection has to bridge their widths."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PretrainedConfig

from sparse_pretrain.config.distillation import DistillationSection, HiddenSection
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.pretraining import HiddenTap, Taps
from sparse_pretrain.models.projections import Widths


class HiddenPair(NamedTuple):
    """A student's hidden state (through its projection) and the teacher's that it follows."""

    student: HiddenTap
    teacher: HiddenTap


class LayerPair(NamedTuple):
    """A student layer and the teacher layer that it follows, both from 1."""

    student: int
    teacher: int


class Match(NamedTuple):
    """What the student compares with one teacher beside logits."""

    hidden: tuple[HiddenPair, ...] = ()
    attention: tuple[LayerPair, ...] = ()
    embeddings: tuple[HiddenPair, ...] = ()


def match_teachers(
    section: DistillationSection, student: PretrainedConfig, teachers: Sequence[PretrainedConfig]
) -> tuple[Match, ...]:
    """Return the pairs of every teacher, in the recipe's order.

    Raises:
        UserError: a layer of the recipe's map does not exist.
    """
    return tuple(match(section, student, teacher, number) for number, teacher in enumerate(teachers))


def match(
    section: DistillationSection, student: PretrainedConfig, teacher: PretrainedConfig, number: int
) -> Match:
    """Return the pairs with teacher `number`; each pair of different widths gets a projection of its own."""
    bridged = student.hidden_size != teacher.hidden_size

    def pair(mine: int, its: int, name: str) -> HiddenPair:
        projection = f"teacher-{number}-{name}" if bridged else None
        return HiddenPair(HiddenTap(mine, projection), HiddenTap(its))

    hidden = layer_pairs(section.hidden, "hidden", student, teacher)
    return Match(
        hidden=tuple(pair(mine, its, f"hidden-{mine}-{its}") for mine, its in hidden),
        attention=layer_pairs(section.attention, "attention", student, teacher),
        embeddings=(pair(0, 0, "embeddings"),) if section.embeddings is not None else (),
    )


def layer_pairs(
    section: HiddenSection | None, key: str, student: PretrainedConfig, teacher: PretrainedConfig
) -> tuple[LayerPair, ...]:
    """Return (student layer, teacher layer) pairs: the section's map, else evenly spaced ones.

    Raises:
        UserError: the map names a layer that one of the models has not.
    """
    if section is None:
        return ()
    depths = (student.num_hidden_layers, teacher.num_hidden_layers)
    if section.layers is None:
        return evenly(*depths)
    pairs = tuple(LayerPair(mine, its) for mine, its in sorted(section.layers.items()))
    for pair in pairs:
        for who, layer, depth in zip(("student", "teacher"), pair, depths, strict=True):
            if layer > depth:
                raise UserError(
                    f"distillation.{key}.layers: {pair.student}: {pair.teacher}: there is no {who} layer "
                    f"{layer}; the {who} has {depth} layers"
                )
    return pairs


def evenly(student_depth: int, teacher_depth: int) -> tuple[LayerPair, ...]:
    """Map student layer i of S to teacher layer i T / S, rounded half up and at least 1.

    The last follows the last (the uniform strategy of TinyBERT, Jiao et al. 2020).
    """
    return tuple(
        LayerPair(layer, max(1, (2 * layer * teacher_depth + student_depth) // (2 * student_depth)))
        for layer in range(1, student_depth + 1)
    )


def student_taps(matches: Sequence[Match]) -> Taps:
    """Return what the student must give for all teachers."""
    hidden = [pair.student for match in matches for pair in (*match.embeddings, *match.hidden)]
    attention = [pair.student for match in matches for pair in match.attention]
    return Taps(tuple(dict.fromkeys(hidden)), tuple(dict.fromkeys(attention)))


def teacher_taps(match: Match) -> Taps:
    """Return what one teacher must give."""
    hidden = [pair.teacher for pair in (*match.embeddings, *match.hidden)]
    attention = [pair.teacher for pair in match.attention]
    return Taps(tuple(dict.fromkeys(hidden)), tuple(dict.fromkeys(attention)))


def projection_widths(
    matches: Sequence[Match], student: PretrainedConfig, teachers: Sequence[PretrainedConfig]
) -> dict[str, Widths]:
    """Return the projections that the pairs need, by name."""
    return {
        pair.student.projection: Widths(student.hidden_size, teacher.hidden_size)
        for match, teacher in zip(matches, teachers, strict=True)
        for pair in (*match.embeddings, *match.hidden)
        if pair.student.projection is not None
    }
