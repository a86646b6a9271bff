"""Parts of files: whatever the cut and the packing, every record once."""

import bz2
import gzip
import lzma
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_prep.sources.bzip2 import blocks
from data_prep.sources.parts import Packing, Part, chunks, cut, packing_of
from data_prep.sources.records import elements, lines

START, END = b"<page>", b"</page>"
LIMIT = 10**6


def sample() -> bytes:
    """Pages of every length around those of tags, chunks and blocks."""
    draw = random.Random(3)
    pages = []
    for _ in range(150):
        body = bytes(draw.choices(b"<p/>age\n", k=draw.randrange(0, 900)))
        pages.append(START + body.replace(START, b"").replace(END, b"") + END + b"  " * draw.randrange(3))
    return b"<pages>head" + b"".join(pages) + b"tail"


def many_streams(text: bytes) -> bytes:
    return b"".join(bz2.compress(text[at : at + 3333]) for at in range(0, len(text), 3333))


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "bzip2": bz2.compress,
    "multistream": many_streams,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstandard": zstandard.compress,
}


def parts_of(path: Path, step: int) -> list[Part]:
    packing = packing_of(path)
    size = path.stat().st_size
    if packing in (Packing.PLAIN, Packing.BZIP2):
        return [Part(path, packing, start, min(start + step, size), 0) for start in range(0, size, step)]
    return [Part(path, packing, number, 5, 0) for number in range(5)]


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("step", [50, 333, 10**6])
def test_every_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    monkeypatch.setattr("data_prep.sources.parts.STRIPE", 500)
    monkeypatch.setattr("data_prep.sources.parts.CHUNK", 100)
    monkeypatch.setattr("data_prep.sources.parts.PIECE", 100)
    text = sample()
    path = tmp_path / name
    path.write_bytes(PACKINGS[name](text))
    parts = parts_of(path, step)
    pages = [page for part in parts for page in elements(chunks(part), START, END, LIMIT)]
    rows = [row for part in parts for row in lines(chunks(part), part.is_first, LIMIT)]
    expected = re.findall(START + b".*?" + END, text, re.DOTALL)
    if name in ("plain", "bzip2", "multistream"):
        assert (pages, rows) == (expected, text.split(b"\n"))
    else:
        assert sorted(map(bytes, pages)) == sorted(expected)  # type: ignore[arg-type]
        assert sorted(map(bytes, rows)) == sorted(text.split(b"\n"))  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [1, 9])
def test_blocks_of_bzip2_are_found_at_any_bit(level: int) -> None:
    draw = random.Random(level)
    text = bytes(draw.choices(b"abcdefgh", k=1_500_000))
    packed = bz2.compress(text, level)
    found = list(blocks(packed))
    assert len(found) >= 2
    assert b"".join(block.text or b"" for block in found) == text
    later = list(blocks(packed, found[1].byte))
    assert [block.byte for block in later] == [block.byte for block in found[1:]]


def test_small_files_are_one_part_and_large_ones_some_256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert len(cut(path, 100)) == 1
    with path.open("wb") as handle:
        handle.truncate(4 * 2**30)
    parts = cut(path, 4 * 2**30)
    assert len(parts) == 256
    assert sum(part.size for part in parts) == 4 * 2**30
