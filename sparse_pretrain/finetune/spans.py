"""From the logits of a question's windows to ranked answers (BERT's SQuAD post-processing)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_pretrain.finetune.recipe import SpanSection

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """One window of a context.

    Attributes:
        start: logit of each token being the first of the answer.
        end: logit of each token being the last.
        offsets: characters [first, behind the last] of the context for each token; None outside the context.
        null: the token that stands for "no answer" ([CLS]).
    """

    start: Array
    end: Array
    offsets: Sequence[Sequence[int] | None]
    null: int = 0

    @property
    def null_score(self) -> float:
        """How much speaks for no answer in this window."""
        return float(self.start[self.null] + self.end[self.null])


@dataclass(frozen=True)
class Candidate:
    """A possible answer: characters [first, last) of the context, and the sum of its two logits."""

    first: int
    last: int
    score: float


def candidates(windows: Sequence[Window], section: SpanSection) -> list[Candidate]:
    """Return the `n_best` answers, best first; equal scores in the order of the context.

    Looks at the `n_best` best starts and ends of each window. A span that two windows contain counts once, with
    the better score.
    """
    best: dict[tuple[int, int], float] = {}
    for window in windows:
        usable = np.array([place for place, offset in enumerate(window.offsets) if offset], dtype=np.int64)
        starts = top(window.start, usable, section.n_best)
        ends = top(window.end, usable, section.n_best)
        for start in starts:
            for end in ends:
                if start <= end < start + section.max_answer_length:
                    characters = (offset_of(window, start)[0], offset_of(window, end)[1])
                    score = float(window.start[start] + window.end[end])
                    best[characters] = max(score, best.get(characters, -np.inf))
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Candidate(*characters, score) for characters, score in ranked[: section.n_best]]


def offset_of(window: Window, place: int) -> Sequence[int]:
    """Return the characters of a token of the context."""
    offset = window.offsets[place]
    assert offset is not None  # noqa: S101 - only such tokens are candidates
    return offset


def top(logits: Array, usable: Array, count: int) -> list[int]:
    """Return the `count` usable places with the largest logits."""
    order = np.argsort(-logits[usable], kind="stable")[:count]
    return [int(place) for place in usable[order]]


def best_answer(context: str, windows: Sequence[Window], section: SpanSection) -> str:
    """Return the answer, as it stands in the context; empty for no answer.

    With `no_answer`, the null score is the smallest of all windows (an answer in one of them is an answer), and it
    has to beat the best span by more than `null_threshold`.
    """
    found = candidates(windows, section)
    if not found:
        return ""
    null = min(window.null_score for window in windows)
    if section.no_answer and null - found[0].score > section.null_threshold:
        return ""
    return context[found[0].first : found[0].last]
