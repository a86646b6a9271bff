"""Where the splitter ends sentences, remembered: the same sentences at several times its speed.

What the splitter decides about a mark depends on little text: the chunk that holds it (what stands between two
spaces), the next chunk, and whether the chunk begins a line ("1." is no sentence there). Text repeats chunks. So
the splitter is asked about a pair of chunks once, all alone, and never again; about most chunks not even that, since
by Punkt's rules what follows matters only after abbreviations, initials, numbers, ellipses and the first words of
collocations.
"""

import re
from itertools import islice

import nupunkt
from nupunkt.core.base import is_abbreviation
from nupunkt.core.language_vars import PunktLanguageVars
from nupunkt.core.tokens import PunktToken

CLOSING = "\"')]}”’»*"
MARKS = ".?!…"
_CLOSING = re.escape(CLOSING)
_OPENING = re.escape("\"'(“‘[")
# A chunk's first mark that may end a sentence within a line, and the rest of the chunk. Group 1 is there in the plain
# case: marks and closing quotes end the chunk, and the next begins with a word or with what neither is a mark nor
# closes a quotation; after a quotation with what surely is no lower case.
MARK = re.compile(
    rf"""
    [{MARKS}](?:
        ([{MARKS}]*(?:
            (?=[ ](?:[{_OPENING}]*\w|[^\s{MARKS}{_CLOSING}]))
            |[{_CLOSING}]+(?=[ ](?:[{_OPENING}]*[A-Z0-9]|[(\[“‘<&$–—-]))
        ))
        |(?![{MARKS}]*[{_CLOSING}]*$)(?=[)"; }}\]*:@({{\[?!”»]|['’](?![^\W\d_]))\S*
    )
    """,
    re.VERBOSE | re.MULTILINE,
)
# Group 1: the only word of the chunk.
NEXT_CHUNK = re.compile(r" (?:([^\W\d_]{2,})[,;:]?(?!\S)|\S+)")
# Stand for all next words of which the model knows nothing.
UNKNOWN, UNKNOWN_LOWER = " Zzz", " zzz"
# What makes no difference at a chunk's beginning: which word an ellipsis follows, and which number a full stop.
ANY_WORD_OR_NUMBER = re.compile(r"[^\W\d_]+(?=[^\W\d_]\.\.)|\d+(?=\d\. )")
# Some 200 bytes each. When there are more, all are forgotten.
MOST_REMEMBERED = 50_000
LONGEST_REMEMBERED = 100
LINE_START = "\n "


class SentenceEnds:
    """Splits clean texts (see `clean.clean`) as a splitter would that is asked about each line."""

    def __init__(self, splitter: nupunkt.PunktSentenceTokenizer) -> None:
        """Take over a splitter, whose parameters must not change any more."""
        parameters = splitter.parameters
        self._splitter = splitter
        self._abbreviations = parameters.abbrev_types
        self._begin_collocations = {first for first, _ in parameters.collocations}
        # Words in lower case that may stand before a mark and yet end no sentence.
        self._exceptions = self._abbreviations | self._begin_collocations
        self._words = PunktLanguageVars().word_tokenize
        # Next words, in lower case, that decide by more than being sentence starters or in upper case.
        self._telling = {second for _, second in parameters.collocations} | set(parameters.ortho_context)
        self._starters = parameters.sent_starters - self._telling
        self._starter = " " + min(filter(str.isalpha, self._starters)).capitalize()
        # A chunk -> whether it ends a sentence in the plain case.
        self._certain: dict[str, bool] = {}
        # A chunk and the next -> where sentences end, counted from the first one's beginning.
        self._ends: dict[str, tuple[int, ...]] = {}

    def split(self, text: str) -> list[str]:
        """Return the sentences of a clean text, without spaces around them."""
        sentences = self._split(text)
        if sentences is not None:
            return sentences
        lines = text.split("\n")
        if len(lines) > 1:
            return [sentence for line in lines for sentence in self.split(line)]
        return list(filter(None, map(str.strip, self._splitter.tokenize(text))))

    def _split(self, text: str) -> list[str] | None:
        """Return the sentences; None where more text decides than two chunks."""
        # With this a space stands before every chunk.
        text = LINE_START + text.replace("\n", LINE_START)
        certain = self._certain
        pieces = []
        done = 0
        for mark in MARK.finditer(text):
            start = text.rfind(" ", 0, mark.start()) + 1
            if text[start - 2] == "\n":
                start -= 2
            end = mark.end()
            if mark.lastindex:
                chunk = text[start:end]
                ends_here = certain.get(chunk)
                if ends_here is None:
                    ends_here = self._find_certain(chunk)
                if ends_here:
                    pieces.append(text[done:end])
                    done = end
                    continue
            following = NEXT_CHUNK.match(text, end)
            pair = text[start:end]
            if following is not None:
                if text[end - 1] == "." and following[0][1] in MARKS:
                    # A spaced ellipsis (". . ."), which is one mark however long it is.
                    return None
                pair += self._next(following)
            ends = self._ends.get(pair)
            if ends is None:
                ends = self._find_ends(pair, end - start)
            for relative in ends:
                pieces.append(text[done : start + relative])
                done = start + relative
        pieces.append(text[done:])
        return list(filter(None, map(str.strip, "\n".join(pieces).split("\n"))))

    def _next(self, following: re.Match[str]) -> str:
        """Return a next chunk, or one that makes the splitter decide alike."""
        word: str | None = following[1]
        if word is not None:
            lower = word.lower()
            if lower not in self._telling:
                if word[0].isupper():
                    return self._starter if lower in self._starters else UNKNOWN
                if word[0].islower():
                    return UNKNOWN_LOWER
        return following[0]

    def _find_certain(self, chunk: str) -> bool:
        is_certain = self._is_certain(chunk)
        if len(self._certain) >= MOST_REMEMBERED:
            self._certain.clear()
        if len(chunk) <= LONGEST_REMEMBERED:
            self._certain[chunk] = is_certain
        return is_certain

    def _is_certain(self, chunk: str) -> bool:
        """Tell whether a chunk of the plain case ends a sentence, whatever word follows."""
        word = chunk.removeprefix(LINE_START)
        body = word.rstrip(CLOSING)
        if body[-1] in "?!":
            return True
        stem = body[:-1]
        if body[-1] == "." and stem.isalpha() and len(stem) > 1:
            ends = stem.lower() not in self._exceptions
        else:
            ends = self._ends_sentence(PunktToken(self._words(body)[-1]))
        # At a line's beginning it may be the number of a list ("iv.").
        return ends and (word is chunk or len(self._splitter.tokenize(f"{word} A")) > 1)

    def _ends_sentence(self, token: PunktToken) -> bool:
        return (
            token.period_final
            and not token.is_ellipsis
            and not token.is_initial
            and not token.is_number
            and token.type_no_period not in self._begin_collocations
            and not (
                token.valid_abbrev_candidate and is_abbreviation(self._abbreviations, token.tok[:-1].lower())
            )
        )

    def _find_ends(self, pair: str, chunk_length: int) -> tuple[int, ...]:
        same = ANY_WORD_OR_NUMBER.match(pair)
        if same is None:
            ends = self._ask(pair, chunk_length)
        else:
            left_out = same.end()
            shorter = pair[left_out:]
            found = self._ends.get(shorter)
            if found is None:
                found = self._find_ends(shorter, chunk_length - left_out)
            ends = tuple(end + left_out for end in found)
        if len(self._ends) >= MOST_REMEMBERED:
            self._ends.clear()
        if len(pair) <= 2 * LONGEST_REMEMBERED:
            self._ends[pair] = ends
        return ends

    def _ask(self, pair: str, chunk_length: int) -> tuple[int, ...]:
        """Ask the splitter where sentences end in a chunk, or with closing quotes that are the chunk after it."""
        # Before a chunk within a line stands a word that decides nothing.
        before = "" if pair.startswith(LINE_START) else "a "
        text = before + pair.removeprefix(LINE_START)
        shift = len(text) - len(pair)
        breaks = list(self._splitter.span_tokenize(text, realign_boundaries=False))[:-1]
        inside = sum(stop <= chunk_length + shift for _, stop in breaks)
        spans = self._splitter.span_tokenize(text) if inside else ()
        return tuple(stop - shift for _, stop in islice(spans, inside))
