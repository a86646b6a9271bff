"""Articles of a MediaWiki XML export."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from data_prep.documents import Drop, Fault, Raw
from data_prep.recipe import WikipediaDump
from data_prep.sources.base import LARGEST_RECORD, Source, Unit, files_of
from data_prep.sources.hashing import hash_files
from data_prep.sources.parts import Packing, Part, chunks, cut, packing_of, read_beginning
from data_prep.sources.records import elements
from data_prep.wikitext import article_text
from sparse_pretrain.errors import UserError

ARTICLE_NAMESPACE = "0"
# A link into these namespaces shows an image or sorts the page; its words are not the article's.
HIDDEN_NAMESPACES = {"6": ["file", "image"], "14": ["category"]}
DISAMBIGUATION_TITLE = "(disambiguation)"
HEADER_BYTES = 2**20
SITE = re.compile(r"<siteinfo>.*?</siteinfo>", re.DOTALL)
# XML allows no control characters; a dump that holds some is repaired.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class WikipediaDumpSource(Source):
    """The articles of a dump in its order; of a full-history dump, each page's last revision."""

    kind = "wikipedia_dump"

    def __init__(self, section: WikipediaDump) -> None:
        """Read the site's namespaces, whose names differ between languages.

        Raises:
            UserError: the file is missing, or is not a dump.
        """
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = str(section.path)
        self.paths = files_of(section.path)
        hidden = {name for names in HIDDEN_NAMESPACES.values() for name in names}
        hidden |= hidden_names(self.paths[0])
        self.extract = partial(article_text, hidden_namespaces=frozenset(hidden))

    def fingerprint(self) -> str:
        """Return the hash of the file as it lies on the disk."""
        return hash_files(self.paths)

    def units(self) -> list[Unit]:
        """Return parts of the files."""
        total = sum(path.stat().st_size for path in self.paths)
        return [Unit(part.size, part) for path in self.paths for part in cut(path, total)]

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield the wikitext of each article."""
        part: Part = unit.where
        for record in elements(chunks(part), b"<page>", b"</page>", LARGEST_RECORD):
            match record:
                case bytes():
                    yield read_page(record)
                case Drop():
                    yield Raw(drop=record)
                case Fault():
                    yield Raw(fault=record)


def hidden_names(path: Path) -> set[str]:
    """Return the wiki's own names of the namespaces that are not shown, casefolded.

    Raises:
        UserError: the file is no MediaWiki export.
    """
    start = read_beginning(path, HEADER_BYTES).decode("utf-8", "replace")
    if not start:
        truncated = packing_of(path) is not Packing.PLAIN and path.stat().st_size
        problem = "truncated: nothing in it can be read; fetch it again" if truncated else "empty"
        raise UserError(f"{path}: {problem}")
    site = SITE.search(start)
    if "<mediawiki" not in start or not (site or "<page>" in start):
        tag = re.search(r"<[a-zA-Z]\w*", start)
        found = f"its XML begins with {tag.group()}>" if tag else "it is not XML"
        raise UserError(f"{path}: not a MediaWiki export: {found}")
    if site is None:
        return set()
    try:
        spaces = ElementTree.fromstring(site.group()).iter("namespace")  # noqa: S314 - no entities: expat refuses
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: damaged: its <siteinfo> is not valid XML ({error})") from None
    return {
        str(space.text).casefold() for space in spaces if space.get("key") in HIDDEN_NAMESPACES and space.text
    }


def read_page(element: bytes) -> Raw:
    """Return the wikitext of a page's last revision, or why the page is no article."""
    fault = None
    try:
        text = element.decode()
    except UnicodeDecodeError:
        text, fault = element.decode("utf-8", "replace"), Fault.BAD_ENCODING
    try:
        page = ElementTree.fromstring(CONTROL.sub("", text))  # noqa: S314
    except ElementTree.ParseError:
        return Raw(text, Drop.DAMAGED, fault)
    title = page.findtext("title", "")
    if page.findtext("ns", ARTICLE_NAMESPACE).strip() != ARTICLE_NAMESPACE:
        return Raw(title, Drop.NOT_AN_ARTICLE, fault)
    if page.find("redirect") is not None:
        return Raw(title, Drop.REDIRECT, fault)
    if title.casefold().endswith(DISAMBIGUATION_TITLE):
        return Raw(title, Drop.DISAMBIGUATION, fault)
    texts = [revision.findtext("text") for revision in page.iter("revision")]
    return Raw(texts[-1], None, fault) if texts and texts[-1] else Raw(title, Drop.NO_TEXT, fault)
