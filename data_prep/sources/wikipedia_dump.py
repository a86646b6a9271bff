"""Articles of a MediaWiki XML export."""

import bz2
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO
from xml.etree.ElementTree import ParseError

import mwxml
from mwxml.element_iterator import ElementIterator
from mwxml.errors import MalformedXML

from data_prep.documents import Drop
from data_prep.recipe import WikipediaDump
from data_prep.sources.base import Source, require_file
from data_prep.wikitext import article_text
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file

BZIP2_MAGIC = b"BZh"
ARTICLE_NAMESPACE = 0
# A link into these namespaces shows an image or sorts the page; its words are not the article's.
HIDDEN_NAMESPACES = {6: {"file", "image"}, 14: {"category"}}
DISAMBIGUATION_TITLE = "(disambiguation)"


class WikipediaDumpSource(Source):
    """The articles of a dump in its order; of a full-history dump, each page's last revision."""

    kind = "wikipedia_dump"

    def __init__(self, section: WikipediaDump) -> None:
        """Read the site's namespaces, whose names differ between languages.

        Raises:
            UserError: the file is missing, or is not a dump.
        """
        self.path = section.path
        self.name = str(section.path)
        require_file(self.path)
        self.total = self.path.stat().st_size
        with self.open_dump() as (_, dump, _):
            namespaces = dump.site_info.namespaces or []
            hidden = {name for names in HIDDEN_NAMESPACES.values() for name in names}
            hidden |= {space.name.casefold() for space in namespaces if space.id in HIDDEN_NAMESPACES}
        self.extract = partial(article_text, hidden_namespaces=frozenset(hidden))

    def fingerprint(self) -> str:
        """Return the hash of the file as it lies on the disk."""
        return sha256_file(self.path)

    def read(self) -> Iterator[str | Drop]:
        """Yield the wikitext of each article."""
        with self.open_dump() as (file, dump, root):
            for page in dump.pages:
                self.position = file.tell()
                yield page_wikitext(page)
                # The parser hangs every finished page on the root: millions of empty elements in the end.
                del root.element[:]
            self.position = self.total

    @contextmanager
    def open_dump(self) -> Iterator[tuple[IO[bytes], mwxml.Dump, ElementIterator]]:
        """Open the dump: the file (for its position), the pages, the XML's root element.

        Raises:
            UserError: damage anywhere in what the body reads.
        """
        with self.path.open("rb") as file:
            try:
                root = ElementIterator.from_file(decompressed(file))
                if root.tag != "mediawiki":
                    raise UserError(f"{self.path}: not a MediaWiki export: its XML begins with <{root.tag}>")
                yield file, mwxml.Dump.from_element(root), root
            except EOFError:
                raise UserError(
                    f"{self.path}: truncated: the bzip2 data ends early; fetch it again"
                ) from None
            except (ParseError, MalformedXML) as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{self.path}: damaged or truncated: not valid MediaWiki XML ({reason})"
                ) from None
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path}: damaged: {error}; fetch it again") from None


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """Return the file's content: unpacked when it is bzip2, by its first bytes, whatever its name."""
    is_bzip2 = file.read(len(BZIP2_MAGIC)) == BZIP2_MAGIC
    file.seek(0)
    return bz2.open(file, "rb") if is_bzip2 else file


def page_wikitext(page: mwxml.Page) -> str | Drop:
    """Return the wikitext of a page's last revision, or why the page is no article."""
    if page.namespace != ARTICLE_NAMESPACE:
        return Drop.NOT_AN_ARTICLE
    if page.redirect is not None:
        return Drop.REDIRECT
    if page.title.casefold().endswith(DISAMBIGUATION_TITLE):
        return Drop.DISAMBIGUATION
    text: str | None = None
    for revision in page:
        text = revision.text
    return text or Drop.NO_TEXT
