"""Near-duplicates by MinHash with banding: documents that share most of their runs of tokens.

The share of common shingles (runs of eight tokens) of two documents is the probability that the least of their
hashes is the same (Broder 1997). Each document keeps 14 bands of 8 such hashes, one number a band; documents with
a band in common are near-duplicates, 92 % of those that share 80 % of their shingles and 0.1 % of those that
share 30 %. The bands are datatrove's; the steps that find equal ones are ours, because datatrove's hold a whole
book's hashes at a time (900 MB for a million words) and need another tokenizer. Here a worker holds a few
megabytes, and finding equal bands takes 24 bytes a document, a band at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.documents import Tokens
from data_prep.token_files import read_columns
from sparse_pretrain.data.order import mix

SHINGLE_TOKENS = 8
BANDS = 14
HASHES_PER_BAND = 8
# Shingles hashed at a time: 112 hashes of each are 3.5 MB.
BLOCK = 4096
HASHES = BANDS * HASHES_PER_BAND
# Odd multipliers and offsets of the hash functions; the same on every machine.
MULTIPLIERS = mix(np.arange(HASHES, dtype=np.uint64)) | np.uint64(1)
OFFSETS = mix(np.arange(HASHES, 2 * HASHES, dtype=np.uint64))
FACTOR = np.uint64(0x9E3779B97F4A7C15)


def bands_of(tokens: Tokens) -> NDArray[np.uint64]:
    """Return a document's bands, [14]; at least one token."""
    hashes = shingles(tokens)
    least = np.full(HASHES, np.iinfo(np.uint64).max)
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None] * MULTIPLIERS + OFFSETS
        np.minimum(least, block.min(axis=0), out=least)
    # The high bits of a product are well mixed, the low ones are not.
    bands = (least >> np.uint64(32)).reshape(BANDS, HASHES_PER_BAND)
    joined = np.arange(BANDS, dtype=np.uint64)
    for column in bands.T:
        joined = mix(joined ^ column)
    return joined


def shingles(tokens: Tokens) -> NDArray[np.uint64]:
    """Return a hash of each run of eight tokens; of a shorter document, one of it all."""
    width = min(SHINGLE_TOKENS, len(tokens))
    count = len(tokens) - width + 1
    values = tokens.astype(np.uint64)
    hashes = np.zeros(count, np.uint64)
    for at in range(width):
        hashes = hashes * FACTOR + values[at : at + count]
    return mix(hashes)


def near_duplicates(files: Sequence[Path], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell of each document whether it is nearly an earlier one, directly or by a chain of others.

    Args:
        files: of the tokenized documents, with bands.
        keep: bool [documents], which ones to look at.
    """
    # Half a second to import, which every worker would spend.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    position = np.flatnonzero(keep)
    firsts: list[NDArray[np.int64]] = []
    seconds: list[NDArray[np.int64]] = []
    for band in range(BANDS):
        values = np.concatenate([np.empty(0, np.uint64), *(read_band(path, band) for path in files)])[
            position
        ]
        _, first, group = np.unique(values, return_index=True, return_inverse=True)
        earliest = first[group]
        repeated = np.flatnonzero(earliest != np.arange(len(values)))
        firsts.append(earliest[repeated])
        seconds.append(repeated)
    rows, columns = np.concatenate(firsts), np.concatenate(seconds)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(len(position), len(position)))
    _, cluster = connected_components(links, directed=False)
    _, first = np.unique(cluster, return_index=True)
    result = np.zeros(len(keep), bool)
    result[np.delete(position, first)] = True
    return result


def read_band(path: Path, band: int) -> NDArray[np.uint64]:
    """Return one band of a unit's documents."""
    column: pa.ChunkedArray = read_columns(path, "bands")["bands"]
    values = [chunk.flatten().to_numpy().reshape(-1, BANDS)[:, band] for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.uint64), *values])
