"""Paragraphs to sentences: the one place that knows the splitter.

nupunkt (Bommarito et al. 2025, arXiv 2504.04131) is a Punkt model with a curated list of abbreviations;
it needs no download. `sentence_ends` remembers its decisions.
"""

from functools import cache

import nupunkt

from data_prep.sentence_ends import SentenceEnds


@cache
def splitter() -> nupunkt.PunktSentenceTokenizer:
    """Return the splitter's model, loaded once a process."""
    return nupunkt.load("default")


@cache
def sentence_ends() -> SentenceEnds:
    """Return what is remembered of the splitter's decisions in this process."""
    return SentenceEnds(splitter())


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a clean text (see `clean.clean`); none crosses a line, no character is lost."""
    return sentence_ends().split(text)
