"""Entities in tags such as B-PER I-PER O, and how many of them were found (seqeval's default rules)."""

from collections.abc import Iterator, Sequence

Entity = tuple[str, int, int]


def entities(tags: Sequence[str]) -> Iterator[Entity]:
    """Yield (type, first word, last word) of each entity of a sentence.

    The lenient rules of conlleval and seqeval's default mode: B and S begin an entity, E and S end one, and so does a
    change of type; an I or E with nothing of its type before it begins one, too. Tags without a prefix
    (`NOUN`) are types by themselves.
    """
    start: int | None = None
    mark, kind = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        next_mark, next_kind = parts(tag)
        breaks = next_kind != kind or mark in "ESO" or next_mark in "BSO"
        if start is not None and breaks:
            yield kind, start, place - 1
            start = None
        if next_mark != "O" and start is None:
            start = place
        mark, kind = next_mark, next_kind


def parts(tag: str) -> tuple[str, str]:
    """Return prefix (B, I, E, S or O) and type of a tag."""
    if tag == "O":
        return "O", ""
    mark, dash, kind = tag.partition("-")
    if not dash:
        # `B` alone is an entity without a type, `NOUN` a type without a prefix.
        return (tag, "_") if tag in ("B", "I", "E", "S") else ("I", tag)
    return (mark, kind) if mark in ("B", "I", "E", "S") else ("I", tag)


def entity_metrics(truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return precision, recall and F1 over the entities of all sentences, and the share of right tags.

    Args:
        truth: tags of each sentence.
        predicted: as many tags of as many sentences.
    """
    right_entities = [(row, *entity) for row, tags in enumerate(truth) for entity in entities(tags)]
    said_entities = [(row, *entity) for row, tags in enumerate(predicted) for entity in entities(tags)]
    hits = len(set(right_entities) & set(said_entities))
    pairs = [
        (one, other)
        for tags, guesses in zip(truth, predicted, strict=True)
        for one, other in zip(tags, guesses, strict=True)
    ]
    total = len(right_entities) + len(said_entities)
    return {
        "f1": 2 * hits / total if total else 0.0,
        "precision": hits / len(said_entities) if said_entities else 0.0,
        "recall": hits / len(right_entities) if right_entities else 0.0,
        "accuracy": sum(one == other for one, other in pairs) / len(pairs) if pairs else 0.0,
    }
