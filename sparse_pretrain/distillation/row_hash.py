"""What proves that stored logits and a training batch are of the same input, sample by sample."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from sparse_pretrain.data.batch import Batch


def row_hashes(batch: Batch) -> NDArray[np.uint64]:
    """Return a 64-bit hash of every row's masked tokens, padding left out: uint64 [rows].

    Padding depends on the other rows of a micro-batch, and those on how the run is cut into micro-batches.
    """
    ids = batch.input_ids.cpu().numpy().astype("<i4")
    mask = batch.attention_mask
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
    digests = [
        hashlib.blake2b(row[:length].tobytes(), digest_size=8).digest()
        for row, length in zip(ids, lengths, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
