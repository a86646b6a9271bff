"""Paragraphs to sentences: the one place that knows the splitter.

nupunkt (Bommarito et al. 2025, arXiv 2504.04131) is a Punkt model with a curated list of abbreviations;
it needs no download and splits several megabytes a second on one core.
"""

import re
from functools import cache

import nupunkt

# Whatever the splitter decides, it ends no sentence but at such a mark with more text behind it.
POSSIBLE_END = re.compile(r"[.?!…]\W")


@cache
def splitter() -> nupunkt.PunktSentenceTokenizer:
    """Return the splitter's model, loaded once a process."""
    return nupunkt.load("default")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a clean text (see `clean.clean`); none crosses a line, no character is lost."""
    sentences: list[str] = []
    tokenize = splitter().tokenize
    for paragraph in text.splitlines():
        # In titles and verses the splitter would find nothing either.
        found = [paragraph] if POSSIBLE_END.search(paragraph) is None else tokenize(paragraph)
        sentences += filter(None, map(str.strip, found))
    return sentences
