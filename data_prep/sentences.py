"""Paragraphs to sentences: the one place that knows the splitter.

nupunkt (Bommarito et al. 2025, arXiv 2504.04131) is a Punkt model with a curated list of abbreviations;
it needs no download and splits several megabytes a second on one core.
"""

from functools import cache

import nupunkt


@cache
def splitter() -> nupunkt.PunktSentenceTokenizer:
    """Return the splitter's model, loaded once a process."""
    return nupunkt.load("default")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a clean text (see `clean.clean`); none crosses a line, no character is lost."""
    return [
        sentence.strip()
        for paragraph in text.splitlines()
        for sentence in splitter().tokenize(paragraph)
        if sentence.strip()
    ]
