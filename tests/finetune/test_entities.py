"""Entities by seqeval's rules, case by case."""

import pytest

from sparse_pretrain.finetune.entities import entities, entity_metrics

CASES = {
    "B-PER I-PER O B-LOC": [("PER", 0, 1), ("LOC", 3, 3)],
    # Two of a type side by side; an I of another type begins anew; an I with nothing before it begins.
    "B-PER B-PER I-LOC": [("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)],
    "O I-ORG I-ORG O": [("ORG", 1, 2)],
    "B-X I-X E-X I-X": [("X", 0, 2), ("X", 3, 3)],
    "S-X S-X B-X E-X": [("X", 0, 0), ("X", 1, 1), ("X", 2, 3)],
    "E-X E-X": [("X", 0, 0), ("X", 1, 1)],
    "B-a-b I-a-b": [("a-b", 0, 1)],
    "O O": [],
    "": [],
    "B I O": [("_", 0, 1)],
    "NOUN NOUN VERB": [("NOUN", 0, 1), ("VERB", 2, 2)],
}


@pytest.mark.parametrize("tags", CASES)
def test_entities_of_a_sentence(tags: str) -> None:
    assert list(entities(tags.split())) == CASES[tags]


def test_an_entity_is_found_only_with_both_ends_and_its_type() -> None:
    # seqeval's own example: one of two entities is found, one of the two that were said is right.
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    said = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    metrics = entity_metrics(truth, said)
    assert metrics == {"f1": 0.5, "precision": 0.5, "recall": 0.5, "accuracy": 0.8}


def test_the_same_place_in_another_sentence_is_another_entity() -> None:
    metrics = entity_metrics([["B-X"], ["O"]], [["O"], ["B-X"]])
    assert (metrics["f1"], metrics["precision"], metrics["recall"]) == (0.0, 0.0, 0.0)
    assert entity_metrics([["O"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
