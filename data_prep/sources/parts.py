"""Parts of large files, so that many workers read one file.

A part gives the text from its first byte on, in chunks, and says of each chunk whether it is the part's own. A
record belongs to the part whose own chunks hold the record's first byte; its end may lie further on. So any
cut into parts gives every record exactly once, in the file's order.

Plain files are cut by bytes, bzip2 by its blocks. Other compressed files can only be read from their start: every
part reads the whole (unpacking is fast beside the work that follows) and owns every n-th stripe.
"""

import gzip
import io
import lzma
import mmap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from data_prep.sources.bzip2 import blocks
from sparse_pretrain.errors import UserError

CHUNK = 2**20
STRIPE = 16 * CHUNK
# A file that is cut off gives what comes before its last piece.
PIECE = 64 * 1024
MOST_STRIPED_PARTS = 64
UNPACK_ERRORS = (OSError, EOFError, zstandard.ZstdError, lzma.LZMAError, ValueError)


class Packing(Enum):
    """How a file is compressed: the name and its first bytes."""

    PLAIN = b""
    BZIP2 = b"BZh"
    GZIP = b"\x1f\x8b"
    XZ = b"\xfd7zXZ\x00"
    ZSTANDARD = b"\x28\xb5\x2f\xfd"


class Part(NamedTuple):
    """A part of a file; picklable.

    Attributes:
        path: the file.
        packing: how it is compressed.
        start: first byte of the file; of a striped file the number of the part.
        end: byte after the last; of a striped file the number of parts.
        size: bytes of the file that this part stands for, for progress.
    """

    path: Path
    packing: Packing
    start: int
    end: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether the file begins with this part."""
        return self.start == 0


class Chunk(NamedTuple):
    """A piece of text.

    Attributes:
        text: None in place of a damaged stretch, or of the end that is missing.
        own: whether records that begin in it are the part's.
        is_after: no chunk after this one is the part's own, nor is this one.
        truncated: the file ends here, before its content does.
    """

    text: bytes | None
    own: bool
    is_after: bool = False
    truncated: bool = False


def packing_of(path: Path) -> Packing:
    """Tell from its first bytes how a file is compressed.

    Raises:
        UserError: it cannot be opened.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(8)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return next((packing for packing in list(Packing)[1:] if start.startswith(packing.value)), Packing.PLAIN)


def unit_size(total: int, smallest: int, largest: int) -> int:
    """Return how large the parts of a source should be: some 256 of them, but neither tiny nor huge.

    A function of the source alone: the number of workers must not change the work's cut.
    """
    return max(smallest, min(largest, total // 256))


def cut(path: Path, total: int) -> list[Part]:
    """Return the parts of a file whose source is `total` bytes large."""
    packing = packing_of(path)
    size = path.stat().st_size
    if packing in (Packing.PLAIN, Packing.BZIP2):
        # bzip2 makes some four bytes of text out of one.
        scale = 1 if packing is Packing.PLAIN else 4
        step = unit_size(total, 2 * CHUNK // scale, 64 * CHUNK // scale)
        starts = range(0, max(size, 1), step)
        return [
            Part(path, packing, start, min(start + step, size), min(step, size - start)) for start in starts
        ]
    parts = min(MOST_STRIPED_PARTS, -(-size // unit_size(total, 4 * CHUNK, 16 * CHUNK)) or 1)
    return [Part(path, packing, number, parts, size // parts) for number in range(parts)]


def chunks(part: Part) -> Iterator[Chunk]:
    """Yield a part's own text and, for as long as it is asked, what follows in the file."""
    match part.packing:
        case Packing.PLAIN:
            yield from plain_chunks(part)
        case Packing.BZIP2:
            yield from bzip2_chunks(part)
        case _:
            yield from striped_chunks(part)


def plain_chunks(part: Part) -> Iterator[Chunk]:
    """Yield the bytes from the part's start on."""
    with part.path.open("rb") as handle:
        handle.seek(part.start)
        at = part.start
        while text := handle.read(min(CHUNK, part.end - at) if at < part.end else CHUNK):
            yield Chunk(text, own=at < part.end, is_after=at >= part.end)
            at += len(text)


def bzip2_chunks(part: Part) -> Iterator[Chunk]:
    """Yield the blocks from the part's start on."""
    if not part.path.stat().st_size:
        return
    with part.path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for block in blocks(content, part.start):
            own = block.byte < part.end
            # Only a file that is cut off ends inside a block.
            yield Chunk(block.text, own, is_after=not own, truncated=block.is_last and block.text is None)


def striped_chunks(part: Part) -> Iterator[Chunk]:
    """Yield the whole text; the part owns every n-th stripe."""
    at = 0
    with part.path.open("rb") as handle, unpacked(handle, part.packing) as stream:
        while True:
            own = at // STRIPE % part.end == part.start
            try:
                text = stream.read(PIECE)
            except UNPACK_ERRORS as error:
                yield Chunk(None, own, truncated=isinstance(error, EOFError))
                return
            if not text:
                return
            yield Chunk(text, own)
            at += len(text)


def unpacked(handle: IO[bytes], packing: Packing) -> IO[bytes]:
    """Return a compressed file's content."""
    match packing:
        case Packing.GZIP:
            return gzip.open(handle, "rb")  # type: ignore[return-value]
        case Packing.XZ:
            return lzma.open(handle, "rb")
        case Packing.ZSTANDARD:
            reader = zstandard.ZstdDecompressor().stream_reader(handle, read_across_frames=True)
            # Its own `read` returns short pieces; pieces of one size make the cut independent of them.
            return io.BufferedReader(reader, PIECE)
        case _:
            raise ValueError(packing)


def read_beginning(path: Path, limit: int) -> bytes:
    """Return the first `limit` bytes of a file's text, as far as it is not damaged.

    Raises:
        UserError: it cannot be opened.
    """
    content = bytearray()
    # One part of one: all of the file.
    for chunk in chunks(Part(path, packing_of(path), 0, 1, 0)):
        if chunk.text is None:
            break
        content += chunk.text
        if len(content) >= limit:
            break
    return bytes(content[:limit])
