"""Any part of a bzip2 file, without what lies before it.

A bzip2 file is a row of blocks of at most 900 kB of text, each packed by itself. A block begins with 48 fixed
bits and its checksum, at any bit, not at a byte. Cut out, shifted to a byte and closed with an end mark, it is a
whole bzip2 file. So one file is read in parallel, multistream or not and without Wikipedia's index, and
a damaged block costs that block alone.
"""

import bz2
import mmap
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

BLOCK = 0x314159265359
STREAM_END = 0x177245385090
MAGIC_BITS = 48
MAGIC_BYTES = 7  # that 48 bits may lie in
CHECKSUM_BITS = 32
HEADER = b"BZh9"  # the largest block size reads all others too
# Of a block that is packed not at all, with room to spare.
LONGEST_BLOCK = 2 * 2**20
WINDOW = 4 * 2**20


class Mark(NamedTuple):
    """Where (in bits) a block begins or a stream ends."""

    bit: int
    is_block: bool


def marks(content: mmap.mmap | bytes, first_byte: int) -> Iterator[Mark]:
    """Yield the marks that begin at or after a byte, a window of the file at a time."""
    for start in range(first_byte, len(content), WINDOW):
        window = content[start : start + WINDOW + MAGIC_BYTES]
        found = [
            Mark(8 * start + bit, magic == BLOCK)
            for magic in (BLOCK, STREAM_END)
            for shift in range(8)
            for bit in find(window, magic, shift)
        ]
        yield from sorted(mark for mark in found if mark.bit < 8 * (start + WINDOW))


def find(window: bytes, magic: int, shift: int) -> Iterator[int]:
    """Yield each bit of the window where the magic number begins at bit `shift` of a byte."""
    image = (magic << (8 * MAGIC_BYTES - MAGIC_BITS - shift)).to_bytes(MAGIC_BYTES, "big")
    # All eight bits of these bytes are the number's own; of the first and the last byte, some.
    inner = image[:-1] if shift == 0 else image[1:-1]
    lead = 0 if shift == 0 else 1
    first_mask, last_mask = 0xFF >> shift, 0xFF << (8 - shift) & 0xFF
    padded = window + bytes(1)
    at = window.find(inner, lead)
    while at >= 0:
        start = at - lead
        if (
            padded[start] & first_mask == image[0]
            and padded[start + MAGIC_BYTES - 1] & last_mask == image[-1]
        ):
            yield 8 * start + shift
        at = window.find(inner, at + 1)


class Block(NamedTuple):
    """One block.

    Attributes:
        byte: where it begins.
        text: None where it is damaged or cut off.
        is_last: the file ends without a mark behind it, which only happens to a file that is cut off.
    """

    byte: int
    text: bytes | None
    is_last: bool


def blocks(content: mmap.mmap | bytes, first_byte: int = 0) -> Iterator[Block]:
    """Yield the blocks that begin at or after a byte, to the end of the file."""
    mark: Mark | None = None
    for following in chain(marks(content, first_byte), [None]):
        if mark is not None and mark.is_block:
            text = None if following is None else unpack(content, mark.bit, following.bit)
            yield Block(mark.bit // 8, text, is_last=following is None)
        mark = following


def unpack(content: mmap.mmap | bytes, start: int, end: int) -> bytes | None:
    """Return the text of the block in bits [start, end); None when its checksum or anything else is wrong."""
    if not MAGIC_BITS + CHECKSUM_BITS < end - start < 8 * LONGEST_BLOCK:
        return None
    packed = np.frombuffer(content[start // 8 : (end + 7) // 8 + 1], np.uint8)
    shift = start % 8
    if shift:
        # The bits of each byte lie in two bytes of the file; beyond the file's end there are none.
        following = np.append(packed[1:], np.uint8(0))
        packed = (packed << np.uint8(shift)) | (following >> np.uint8(8 - shift))
    whole, loose = divmod(end - start, 8)
    body = packed[:whole].tobytes()
    remainder = int(packed[whole]) >> (8 - loose) if loose else 0
    checksum = int.from_bytes(body[MAGIC_BITS // 8 : (MAGIC_BITS + CHECKSUM_BITS) // 8], "big")
    # The checksum of a stream of one block is the block's own.
    tail = (((remainder << MAGIC_BITS) | STREAM_END) << CHECKSUM_BITS) | checksum
    padding = -(loose + MAGIC_BITS + CHECKSUM_BITS) % 8
    width = (loose + MAGIC_BITS + CHECKSUM_BITS + padding) // 8
    try:
        return bz2.decompress(HEADER + body + (tail << padding).to_bytes(width, "big"))
    except (OSError, ValueError):
        return None
