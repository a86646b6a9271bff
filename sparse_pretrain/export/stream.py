"""Safetensors in one pass with a checksum inside: the header is written first, its checksum filled in last."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sparse_pretrain.checkpoint.checksum import CHUNK, Checksum
from sparse_pretrain.checkpoint.tensor_file import LazyTensor, chunks_of, header, loaded, write_all

# Stands in the header while the checksum (XXH3, 128 bits) is computed, over itself too.
BLANK = "0" * 32
KEY = b'"checksum":"'


def write_stream(
    path: Path, tensors: Mapping[str, Tensor | LazyTensor], metadata: Mapping[str, str], checksum: bool
) -> int:
    """Write a new safetensors file; of lazy tensors one is in memory at a time.

    Args:
        path: where.
        tensors: wide types come first in the file (alignment), then by name: the library's order.
        metadata: strings for the header.
        checksum: add `checksum` to the metadata: XXH3-128 in hexadecimal of the file's bytes, with zeros in the
            place of its own 32 digits.

    Returns:
        Bytes written.

    Raises:
        OSError: the disk refused; what was written so far stays.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    told = {**metadata, "checksum": BLANK} if checksum else metadata
    # As the library writes it: no empty entry, no escapes.
    start = header(ordered, told or None, ascii_only=False)
    total, size = Checksum(start), len(start)
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), memoryview(start))
        for name, tensor in ordered.items():
            size += write_tensor(file.fileno(), name, tensor, total)
        if checksum:
            os.pwrite(file.fileno(), total.hexdigest().encode(), start.index(KEY) + len(KEY))
        os.fsync(file.fileno())
    return size


def write_tensor(descriptor: int, name: str, tensor: Tensor | LazyTensor, total: Checksum) -> int:
    """Write one tensor's bytes and add them to the checksum; return their number."""
    # A function of its own: nothing may hold on to this tensor while the next one is made.
    size = 0
    for chunk in chunks_of(tensor if isinstance(tensor, Tensor) else loaded(name, tensor)):
        total.update(chunk)
        size += len(chunk)
        write_all(descriptor, chunk)
    return size


def checksum_problem(path: Path) -> str | None:
    """Return why a file written with a checksum is not what was written, None when it is.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return f"truncated: {size:,} bytes end inside the header"
        start = bytearray(length.to_bytes(8, "little") + file.read(length))
        place = start.find(KEY)
        if place < 0 or len(start) < place + len(KEY) + len(BLANK):
            return "no checksum in its header"
        digits = slice(place + len(KEY), place + len(KEY) + len(BLANK))
        stored = bytes(start[digits])
        start[digits] = BLANK.encode()
        total = Checksum(bytes(start))
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return (
        None if total.hexdigest().encode() == stored else "corrupt or truncated: its checksum does not match"
    )
