"""The dump reader: which pages are articles, and what is said of a damaged file."""

import bz2
import gc
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest

from data_prep.documents import Drop
from data_prep.recipe import WikipediaDump
from data_prep.sources.wikipedia_dump import WikipediaDumpSource
from sparse_pretrain.errors import UserError
from tests.data_prep.corpus import SITE, page, small_dump


def open_dump(path: Path) -> WikipediaDumpSource:
    return WikipediaDumpSource(WikipediaDump(kind="wikipedia_dump", path=path))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
def test_pages_in_order_with_reasons(raw: Path, name: str) -> None:
    source = open_dump(raw / name)
    found = list(source.read())
    assert len(found) == 38
    assert found[0] is Drop.REDIRECT
    assert found[1] is Drop.NOT_AN_ARTICLE
    assert found[3] is Drop.DISAMBIGUATION
    assert source.position == source.total == (raw / name).stat().st_size
    texts = [item if isinstance(item, Drop) else source.extract(item) for item in found]
    reasons = Counter(item for item in texts if isinstance(item, Drop))
    expected = {Drop.REDIRECT: 1, Drop.NOT_AN_ARTICLE: 1, Drop.DISAMBIGUATION: 2, Drop.NO_TEXT: 1}
    assert reasons == expected
    assert str(texts[-1]).startswith("Text 29 begins here.")


def test_a_second_reading_is_the_same(raw: Path) -> None:
    source = open_dump(raw / "dump.xml")
    assert list(source.read()) == list(source.read())


def test_multistream_files_are_read_to_their_end(tmp_path: Path) -> None:
    """Wikipedia's multistream dumps are many bzip2 streams in a row."""
    text = small_dump().encode()
    path = write(tmp_path / "dump.bz2", bz2.compress(text[:1000]) + bz2.compress(text[1000:]))
    assert len(list(open_dump(path).read())) == 38


def test_the_last_revision_counts(tmp_path: Path) -> None:
    dump = SITE + page("Page", ["The old text.", "The new text."]) + "</mediawiki>"
    assert list(open_dump(write(tmp_path / "dump.xml", dump)).read()) == ["The new text."]


def test_image_links_are_known_by_the_wikis_own_language(tmp_path: Path) -> None:
    dump = (
        SITE + page("Seite", ["Text [[Datei:A.jpg|B]][[Kategorie:C]][[:Kategorie:D]] ends."]) + "</mediawiki>"
    )
    source = open_dump(write(tmp_path / "dump.xml", dump))
    (wikitext,) = source.read()
    assert isinstance(wikitext, str)
    assert "A.jpg" not in str(source.extract(wikitext))
    assert str(source.extract(wikitext)) == "Text Kategorie:D ends."


def test_finished_pages_do_not_pile_up(tmp_path: Path) -> None:
    """The XML parser keeps every element it has seen unless it is told not to."""
    source = open_dump(write(tmp_path / "dump.xml", small_dump(articles=1000)))
    alive = 0
    for number, _ in enumerate(source.read()):
        if number == 1000:
            gc.collect()
            alive = sum(isinstance(item, Element) for item in gc.get_objects())
    # The parser reads some 250 elements of these pages ahead; all finished pages would be 1000.
    assert 0 < alive < 500


@pytest.mark.parametrize("compressed", [True, False])
def test_a_truncated_dump_names_the_file(tmp_path: Path, compressed: bool) -> None:
    content = small_dump().encode()
    packed = bz2.compress(content) if compressed else content
    path = write(tmp_path / "cut.xml", packed[: len(packed) * 2 // 3])
    with pytest.raises(UserError, match=r"cut\.xml: (damaged or )?truncated") as error:
        list(open_dump(path).read())
    assert "\n" not in str(error.value)


def test_flipped_bytes_in_bzip2(tmp_path: Path) -> None:
    packed = bytearray(bz2.compress(small_dump().encode()))
    packed[len(packed) // 2] ^= 0xFF
    path = write(tmp_path / "flipped.bz2", bytes(packed))
    with pytest.raises(UserError, match=r"flipped\.bz2: damaged"):
        list(open_dump(path).read())


def test_damage_after_many_pages_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "dump.xml", small_dump().replace("Text 20 begins", "Text <20 & begins"))
    source = open_dump(path)
    with pytest.raises(UserError, match=r"dump\.xml: damaged or truncated: not valid MediaWiki XML"):
        list(source.read())


@pytest.mark.parametrize(
    "content", ["", "plain text", "<html><body>404</body></html>", "<mediawiki><page/></mediawiki>"]
)
def test_other_files_are_refused_at_once(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"not\.xml: "):
        open_dump(write(tmp_path / "not.xml", content))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.xml: no such file"):
        open_dump(tmp_path / "gone.xml")
