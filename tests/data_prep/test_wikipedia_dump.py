"""The dump reader: which pages are articles, and what is said of a damaged file."""

import bz2
from collections import Counter
from pathlib import Path

import pytest

from data_prep.documents import Drop, Fault
from data_prep.recipe import WikipediaDump
from data_prep.sources.wikipedia_dump import WikipediaDumpSource
from sparse_pretrain.errors import UserError
from tests.data_prep.corpus import SITE, page, read_all, small_dump


def open_dump(path: Path) -> WikipediaDumpSource:
    return WikipediaDumpSource(WikipediaDump(kind="wikipedia_dump", path=path))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
def test_pages_in_order_with_reasons(raw: Path, name: str) -> None:
    source = open_dump(raw / name)
    found = read_all(source)
    assert len(found) == 38
    assert found[0] is Drop.REDIRECT
    assert found[1] is Drop.NOT_AN_ARTICLE
    assert found[3] is Drop.DISAMBIGUATION
    texts = [source.extract(item) if isinstance(item, str) else item for item in found]
    reasons = Counter(item for item in texts if isinstance(item, Drop))
    expected = {Drop.REDIRECT: 1, Drop.NOT_AN_ARTICLE: 1, Drop.DISAMBIGUATION: 2, Drop.NO_TEXT: 1}
    assert reasons == expected
    assert str(texts[-1]).startswith("Text 29 begins here.")


def test_multistream_files_are_read_to_their_end(tmp_path: Path) -> None:
    """Wikipedia's multistream dumps are many bzip2 streams in a row."""
    text = small_dump().encode()
    path = write(tmp_path / "dump.bz2", bz2.compress(text[:1000]) + bz2.compress(text[1000:]))
    assert len(read_all(open_dump(path))) == 38


def test_the_last_revision_counts(tmp_path: Path) -> None:
    dump = SITE + page("Page", ["The old text.", "The new text."]) + "</mediawiki>"
    assert read_all(open_dump(write(tmp_path / "dump.xml", dump))) == ["The new text."]


def test_image_links_are_known_by_the_wikis_own_language(tmp_path: Path) -> None:
    dump = (
        SITE + page("Seite", ["Text [[Datei:A.jpg|B]][[Kategorie:C]][[:Kategorie:D]] ends."]) + "</mediawiki>"
    )
    source = open_dump(write(tmp_path / "dump.xml", dump))
    (wikitext,) = read_all(source)
    assert isinstance(wikitext, str)
    assert "A.jpg" not in str(source.extract(wikitext))
    assert str(source.extract(wikitext)) == "Text Kategorie:D ends."


@pytest.mark.parametrize("compressed", [True, False])
def test_the_good_pages_of_a_truncated_dump_are_kept(tmp_path: Path, compressed: bool) -> None:
    content = small_dump(articles=200).encode()
    # Blocks of 100 kB, so that the cut leaves some whole.
    packed = bz2.compress(content, 1) if compressed else content
    found = read_all(open_dump(write(tmp_path / "cut.xml", packed[: len(packed) * 2 // 3])))
    assert 50 < sum(isinstance(item, str) for item in found) < 208
    assert found[-2:] == [Fault.TRUNCATED, Drop.DAMAGED]
    assert found[:-2] == read_all(open_dump(write(tmp_path / "whole.xml", content)))[: len(found) - 2]


def test_a_dump_cut_in_its_first_block_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.bz2", bz2.compress(small_dump().encode())[:-100])
    with pytest.raises(UserError, match=r"cut\.bz2: truncated: nothing in it can be read"):
        open_dump(path)


def test_flipped_bytes_in_bzip2_cost_their_block(tmp_path: Path) -> None:
    content = small_dump(articles=400).encode()
    packed = bytearray(bz2.compress(content, 1))
    packed[len(packed) // 2] ^= 0xFF
    found = read_all(open_dump(write(tmp_path / "flipped.bz2", bytes(packed))))
    assert found.count(Fault.DAMAGED_BLOCK) == 1
    whole = read_all(open_dump(write(tmp_path / "whole.xml", content)))
    texts = [item for item in found if isinstance(item, str)]
    assert 200 < len(texts) < len(whole)
    assert set(texts) < set(whole)
    assert found[-1] == whole[-1]


def test_a_page_that_is_not_xml_is_the_only_one_lost(tmp_path: Path) -> None:
    dump = small_dump().replace("Text 20 begins", "Text <20 & begins")
    found = read_all(open_dump(write(tmp_path / "dump.xml", dump)))
    assert found.count(Drop.DAMAGED) == 1
    assert len(found) == 38


def test_bad_utf8_and_control_characters_are_repaired(tmp_path: Path) -> None:
    dump = (
        small_dump()
        .encode()
        .replace(b"Text 3 begins", b"Text \xff3 begins")
        .replace(b"Text 4 b", b"Text \x014 b")
    )
    found = read_all(open_dump(write(tmp_path / "dump.xml", dump)))
    assert found.count(Fault.BAD_ENCODING) == 1
    assert any(isinstance(item, str) and item.startswith("Text \ufffd3 begins") for item in found)
    assert any(isinstance(item, str) and item.startswith("Text 4 begins") for item in found)


def test_a_page_beyond_all_measure_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.wikipedia_dump.LARGEST_RECORD", 3000)
    dump = SITE + page("Long", ["word " * 1000]) + page("Short", ["A short one."]) + "</mediawiki>"
    assert read_all(open_dump(write(tmp_path / "dump.xml", dump))) == [Drop.TOO_LONG, "A short one."]


def test_several_files_by_wildcards(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part{number}.xml", SITE + page("Page", [f"Text {number}."]) + "</mediawiki>")
    assert read_all(open_dump(tmp_path / "part*.xml")) == ["Text 0.", "Text 1.", "Text 2."]
    with pytest.raises(UserError, match="no file matches"):
        open_dump(tmp_path / "none*.xml")


@pytest.mark.parametrize(
    "content", ["", "plain text", "<html><body>404</body></html>", "<mediawiki><page/></mediawiki>"]
)
def test_other_files_are_refused_at_once(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"not\.xml: "):
        open_dump(write(tmp_path / "not.xml", content))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.xml: no such file"):
        open_dump(tmp_path / "gone.xml")
