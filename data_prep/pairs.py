"""Segment pairs with next-sentence labels, after BERT's data preparation (Devlin et al. 2019, appendix A.2).

A document is read a chunk of whole sentences at a time, each chunk about as long as a row. A random number
of the chunk's sentences are the first segment. With the given probability (and always where the chunk is one
sentence) the second segment comes from another document, and the chunk's unread sentences are read again;
else it is the rest of the chunk. A share of the documents is cut into shorter chunks, so that the model
also meets short inputs.

Where BERT draws the other document from everything, a stream can't: it comes from the current window of
documents or the one before. A sentence longer than half a row is cut into pieces, so that little is lost
to truncation. Draws depend on the seed and the document's text only.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache, partial
from random import Random
from typing import Any, NamedTuple

import numpy as np

from data_prep.documents import Document, Tokens
from data_prep.recipe import PairsSection
from data_prep.rows import Row
from data_prep.tokenizer import Template


class Pair(NamedTuple):
    """Two segments; `random_next` when the second does not follow the first."""

    first: Tokens
    second: Tokens
    random_next: bool


class PairBuilder:
    """Pairs of a stream of documents, a window at a time."""

    def __init__(self, template: Template, sequence_length: int, settings: PairsSection, seed: int) -> None:
        """See the module's text.

        Args:
            template: special tokens of a pair.
            sequence_length: token slots of a row.
            settings: probabilities and the window's size.
            seed: of every draw, together with the document.
        """
        self._budget = sequence_length - template.size
        self._settings = settings
        self._seed = seed
        self._window: list[Document] = []
        self._window_tokens = 0
        self._previous: list[Document] = []
        self._special_tokens = cache(partial(template_bytes, template))

    def add(self, document: Document) -> Iterator[Row]:
        """Take a document into the window; yield the window's rows once it is full."""
        self._window.append(document)
        self._window_tokens += len(document.tokens)
        if self._window_tokens >= self._settings.window_tokens:
            yield from self.finish()

    def finish(self) -> Iterator[Row]:
        """Yield the rows of the window as it is."""
        candidates = self._previous + self._window
        for position, document in enumerate(self._window, start=len(self._previous)):
            draw = Random((self._seed << 64) | document.identity)  # noqa: S311 - no secret
            foreign = Foreign(candidates, position, draw) if len(candidates) > 1 else None
            for pair in pairs_of(document, foreign, self._budget, self._settings, draw):
                yield self._row(pair)
        self._previous, self._window, self._window_tokens = self._window, [], 0

    def _row(self, pair: Pair) -> Row:
        dtype = pair.first.dtype
        prefix, middle, suffix = self._special_tokens(dtype)
        # Half the time of `np.concatenate`, which is much for so few numbers.
        first = prefix + pair.first.tobytes() + middle
        tokens: Tokens = np.frombuffer(first + pair.second.tobytes() + suffix, dtype)
        return Row(tokens, len(first) // dtype.itemsize, int(pair.random_next))


def template_bytes(template: Template, dtype: np.dtype[Any]) -> tuple[bytes, bytes, bytes]:
    """Return a template's special tokens as bytes of arrays: before, between and after the segments."""
    prefix, middle, suffix = (
        np.array(part, dtype).tobytes() for part in (template.prefix, template.middle, template.suffix)
    )
    return prefix, middle, suffix


class Foreign:
    """Draws stretches of text from every candidate but one, each document equally likely."""

    def __init__(self, candidates: Sequence[Document], own: int, draw: Random) -> None:
        """See the class; `own` is the position of the document that is left out."""
        self._candidates = candidates
        self._own = own
        self._draw = draw

    def stretch(self, length: int) -> Tokens:
        """Return tokens from the start of a random sentence to the first sentence end after `length` tokens."""
        position = between(self._draw, 0, len(self._candidates) - 2)
        other = self._candidates[position + (position >= self._own)]
        ends = other.sentence_ends
        sentence = between(self._draw, 0, len(ends) - 1)
        start = int(ends[sentence - 1]) if sentence else 0
        last = min(int(ends.searchsorted(start + length)), len(ends) - 1)
        return other.tokens[start : int(ends[last])]


def pairs_of(
    document: Document, foreign: Foreign | None, budget: int, settings: PairsSection, draw: Random
) -> Iterator[Pair]:
    """Yield the pairs of one document.

    Args:
        document: at least one token.
        foreign: where random second segments come from; None when there is no other document, and then
            every second segment is a true one.
        budget: most tokens of both segments together, at least 2.
        settings: probabilities.
        draw: the document's own random numbers.
    """
    cuts = sentence_cuts(document, longest=max(1, budget // 2))
    target = budget
    if draw.random() < settings.short_sequence_probability:
        target = between(draw, 2, budget)
    last = len(cuts) - 1
    at = 0
    while at < last:
        # The chunk [at, end) of sentences: the fewest that reach the target, or all that are left.
        end = min(bisect_left(cuts, cuts[at] + target, at + 1), last)
        middle = at + 1 if end == at + 1 else between(draw, at + 1, end - 1)
        first = document.tokens[cuts[at] : cuts[middle]]
        alone = end == at + 1
        if foreign is not None and (alone or draw.random() < settings.random_next_probability):
            second = foreign.stretch(max(1, target - len(first)))
            yield fit(Pair(first, second, True), budget, draw)
            at = middle
        else:
            if alone:
                first, second = np.split(first, [len(first) // 2])
            else:
                second = document.tokens[cuts[middle] : cuts[end]]
            if len(first):  # a lone token has no second half
                yield fit(Pair(first, second, False), budget, draw)
            at = end


def sentence_cuts(document: Document, longest: int) -> list[int]:
    """Return where sentences begin and the last one ends, with further cuts in sentences over `longest` tokens."""
    cuts = [0]
    start = 0
    for end in document.sentence_ends.tolist():
        if end - start > longest:
            pieces = -(-(end - start) // longest)
            cuts += [start + (end - start) * piece // pieces for piece in range(1, pieces)]
        cuts.append(end)
        start = end
    return cuts


def fit(pair: Pair, budget: int, draw: Random) -> Pair:
    """Cut tokens off the longer segment, each from its front or its back by a coin, until both fit."""
    lengths = [len(pair.first), len(pair.second)]
    excess = lengths[0] + lengths[1] - budget
    if excess <= 0:
        return pair
    random = draw.random
    fronts = [random() < 0.5 for _ in range(excess)]
    # Off the longer one until both are as long, then off the second and the first in turns.
    longer = 0 if lengths[0] > lengths[1] else 1
    alone = min(excess, abs(lengths[0] - lengths[1]))
    in_turns = fronts[alone:]
    cut = [in_turns[1::2], in_turns[0::2]]
    cut[longer] = fronts[:alone] + cut[longer]
    return Pair(without(pair.first, cut[0]), without(pair.second, cut[1]), pair.random_next)


def without(segment: Tokens, fronts: list[bool]) -> Tokens:
    """Return a segment without a token for each coin: True cuts it off the front, False off the back."""
    front = sum(fronts)
    return segment[front : len(segment) - len(fronts) + front]


def between(draw: Random, lowest: int, highest: int) -> int:
    """Return a whole number in [lowest, highest].

    From `random()`, whose sequence Python guarantees between versions, unlike `randint`'s.
    """
    return lowest + int(draw.random() * (highest - lowest + 1))
