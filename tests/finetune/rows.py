"""Tiny tasks of every kind, as rows of JSON: tags, choices and spans that a tiny model learns."""

import json
import random
from pathlib import Path
from typing import Any

from tests.tiny import WORDS

OTHERS = WORDS[1:]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON lines; return the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tagged(generator: random.Random) -> dict[str, Any]:
    """Words, and a tag for each: X for the first half of the vocabulary."""
    words = generator.choices(WORDS, k=generator.randint(3, 9))
    return {"words": words, "tags": ["B-X" if word in WORDS[:20] else "O" for word in words]}


def chosen(generator: random.Random) -> dict[str, Any]:
    """A choice of three endings: the right one has the word `ba`."""
    right = generator.randrange(3)
    # All of one length: an untrained model, too, tells a longer ending from shorter ones.
    words = [generator.choices(OTHERS, k=4) for _ in range(3)]
    words[right][generator.randrange(4)] = "ba"
    endings = [" ".join(ending) for ending in words]
    return {"start": "be", "context": "bi bo", "label": right} | {
        f"e{n}": end for n, end in enumerate(endings)
    }


def answered(generator: random.Random, share: float = 1.0) -> dict[str, Any]:
    """A question whose answer is the word `ba` of the context; only a `share` of them have one."""
    words = generator.choices(OTHERS, k=generator.randint(3, 30))
    answers: dict[str, Any] = {"text": [], "answer_start": []}
    if generator.random() < share:
        place = generator.randrange(len(words))
        words[place] = "ba"
        answers = {"text": ["ba"], "answer_start": [len(" ".join(words[:place])) + (place > 0)]}
    return {"question": "be bi", "context": " ".join(words), "answers": answers}


SPAN = {"kind": "span", "text": "question", "text_pair": "context", "label": "answers"}
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "tokens": (tagged, {"kind": "tokens", "text": "words", "label": "tags"}),
    "choice": (
        chosen,
        {
            "kind": "choice",
            "text": "context",
            "text_pair": "start",
            "choices": ["e0", "e1", "e2"],
            "label": "label",
        },
    ),
    "span": (answered, SPAN | {"span": {"stride": 8}}),
    "no-answer": (
        lambda generator: answered(generator, 0.6),
        SPAN | {"span": {"stride": 8, "no_answer": True}},
    ),
}
