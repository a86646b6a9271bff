"""Wikitext to the prose of an article.

As in BERT (Devlin et al. 2019, section 3.1: "only the text passages … lists, tables, and headers" are
ignored), what is not running text goes: headings, lists, tables, templates, footnotes, formulas, images,
categories. A link keeps the words a reader sees.
"""

import re
from collections.abc import Iterator
from itertools import groupby

import mwparserfromhell
from mwparserfromhell.nodes import (
    ExternalLink,
    Heading,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.wikicode import Wikicode

from data_prep.documents import Drop

REDIRECT = re.compile(r"\s*#\s*redirect\b", re.IGNORECASE)
# Their names vary ("hndis", "place name disambiguation"); "disambiguation needed" marks a link, not a page.
DISAMBIGUATION = re.compile(
    r"\{\{\s*(?![\w -]*\bneeded\b)"
    r"(?:[\w -]*\bdisambig(?:uation)?\b[\w -]*|dab|hndis|geodis|numberdis|mathdab|disamb)"
    r"\s*(?:\||\}\})",
    re.IGNORECASE,
)
# Tags whose content is not prose. Tables written as {| … |} are tags to the parser too.
SILENT_TAGS = frozenset([
    "ref", "references", "table", "gallery", "math", "chem", "ce", "score", "timeline", "imagemap",
    "hiero", "code", "syntaxhighlight", "source", "pre", "templatestyles", "templatedata", "graph",
    "mapframe", "maplink", "section", "ol", "ul", "li", "dl", "dt", "dd", "tr", "td", "th", "style",
    "script",
])  # fmt: skip
BREAKING_TAGS = frozenset(["br", "p", "div", "blockquote", "poem", "center", "hr"])
# Templates that stand for words inside a sentence, and the argument that holds the words.
SPOKEN_TEMPLATES = {
    "lang": "2", "transl": "2", "transliteration": "2", "nowrap": "1", "nobr": "1", "quote": "1", "blockquote": "1",
    "small": "1", "abbr": "1", "visible anchor": "1", "vanchor": "1", "ill": "1", "interlanguage link": "1",
}  # fmt: skip
MEASURES = frozenset(["convert", "cvt"])
# A private-use character marks the line of a list item; such lines go when everything else is text.
LIST_MARK = "\ue000"
PARAGRAPH_BREAK = "\n\n"
INTERWIKI = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?|simple|commons|species|wikt|wiktionary|[sdmbnqv]")

COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
QUOTE_MARKUP = re.compile("'{2,}")
BEHAVIOUR_SWITCH = re.compile(r"__[A-Z]{3,}__")
LEFT_OVER_TAG = re.compile(r"</?[a-zA-Z][^<>\n]*/?>")
LEFT_OVER_BRACKETS = re.compile(r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}")
TABLE_LINE = re.compile(r"\s*(?:[|!]|\{\||\}\})")
EMPTY_BRACKETS = re.compile(r"\s*(?:\(\s*(?:[,;:–-]\s*)*\)|\[\s*\])")
LOOSE_OPENING = re.compile(r"\(\s+(?:[,;:]\s*)*|\((?:[,;:]\s*)+")
SHORTEST_UNFINISHED = 30
FINISHED = re.compile(r"[.!?…。！？؟।][\"'”’»)\]]*$")
LOOSE_CLOSING = re.compile(r"\s+([,.;:](?=\s|$)|\))")


def article_text(wikitext: str, hidden_namespaces: frozenset[str]) -> str | Drop:
    """Return an article's prose, one paragraph a line, or why there is none.

    Args:
        wikitext: the page's source.
        hidden_namespaces: casefolded names of the file and category namespaces in the wiki's language.
    """
    if REDIRECT.match(wikitext):
        return Drop.REDIRECT
    if DISAMBIGUATION.search(wikitext):
        return Drop.DISAMBIGUATION
    # Quotes for bold and italics are left to a regular expression: the parser gives up on unbalanced ones.
    code = mwparserfromhell.parse(COMMENT.sub("", wikitext), skip_style_tags=True)
    text = "".join(spoken(code, hidden_namespaces))
    return "\n".join(filter(says_something, map(tidy, paragraphs(text)))) or Drop.NO_TEXT


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of spoken text: as in MediaWiki, a single line break is a space, and an empty
    line, a list or a table parts paragraphs.
    """
    for is_text, lines in groupby(text.splitlines(), key=is_prose):
        if is_text:
            yield " ".join(lines)


def spoken(code: Wikicode | None, hidden_namespaces: frozenset[str]) -> Iterator[str]:
    """Yield the pieces of text that a reader of the article would read aloud."""
    for node in code.nodes if code is not None else ():
        yield from spoken_node(node, hidden_namespaces)


def spoken_node(node: Node, hidden_namespaces: frozenset[str]) -> Iterator[str]:
    """Yield one node's text."""
    match node:
        case Text():
            yield node.value
        case HTMLEntity():
            yield node.normalize()
        case Wikilink():
            if not is_hidden(str(node.title), hidden_namespaces):
                words = spoken(node.title if node.text is None else node.text, hidden_namespaces)
                # "[[:Category:Rivers]]" is a visible link to the category, shown without its first colon.
                yield "".join(words).removeprefix(":")
        case ExternalLink():
            yield from spoken(node.title, hidden_namespaces)
        case Heading():
            yield PARAGRAPH_BREAK
        case Template():
            yield from spoken_template(node, hidden_namespaces)
        case Tag():
            yield from spoken_tag(node, hidden_namespaces)


def spoken_tag(tag: Tag, hidden_namespaces: frozenset[str]) -> Iterator[str]:
    """Yield the text inside a tag, a line break for a tag that breaks, the mark for a list item."""
    name = str(tag.tag).strip().casefold()
    if tag.wiki_markup in ("*", "#", ":", ";"):
        yield LIST_MARK
    elif name in BREAKING_TAGS:
        yield PARAGRAPH_BREAK
        yield from spoken(tag.contents, hidden_namespaces)
        yield PARAGRAPH_BREAK
    elif name not in SILENT_TAGS:
        yield from spoken(tag.contents, hidden_namespaces)


def spoken_template(template: Template, hidden_namespaces: frozenset[str]) -> Iterator[str]:
    """Yield the words of a template that stands inside a sentence; every other template is silent."""
    name = str(template.name).strip().casefold().replace("_", " ")
    argument = SPOKEN_TEMPLATES.get(name, "1" if name.startswith("lang-") else "")
    if argument and template.has(argument):
        yield from spoken(template.get(argument).value, hidden_namespaces)
    elif name in MEASURES and template.has("1") and template.has("2"):
        yield f"{template.get('1').value} {template.get('2').value}"


def is_hidden(title: str, hidden_namespaces: frozenset[str]) -> bool:
    """Tell whether a link shows nothing to a reader: an image, a category, the same page in another language."""
    prefix, colon, _ = title.partition(":")
    prefix = prefix.strip().casefold()
    return bool(colon) and (prefix in hidden_namespaces or INTERWIKI.fullmatch(prefix) is not None)


def is_prose(line: str) -> bool:
    """Tell whether a line is running text: no list item, no stray row of a table, not empty."""
    return LIST_MARK not in line and TABLE_LINE.match(line) is None and bool(line.strip())


def says_something(paragraph: str) -> bool:
    """Tell prose from what is left of captions and headings written in bold: short, and no sentence ends."""
    long_enough = len(paragraph) >= SHORTEST_UNFINISHED or FINISHED.search(paragraph) is not None
    return long_enough and any(map(str.isalpha, paragraph))


def tidy(line: str) -> str:
    """Remove what markup left behind: quotes, switches, unbalanced brackets, the shells of dropped templates."""
    for left_over in (QUOTE_MARKUP, BEHAVIOUR_SWITCH, LEFT_OVER_TAG, LEFT_OVER_BRACKETS):
        line = left_over.sub("", line)
    line = EMPTY_BRACKETS.sub("", LOOSE_OPENING.sub("(", line))
    return LOOSE_CLOSING.sub(r"\1", line).strip()
