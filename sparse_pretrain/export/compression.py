"""How much smaller is the encoder? As the paper counts, with the cost of knowing where values are, and on disk."""

from dataclasses import dataclass

FP32_BITS = 32


@dataclass(frozen=True)
class Compression:
    """How many times smaller the prunable matrices are than in dense fp32.

    Attributes:
        as_the_paper_counts: sparsity x bits: 32 n / (bits x non-zeros). Where the values belong costs nothing.
        with_index: 32 n / (bits x non-zeros + n): one bit an element says where the values belong.
        on_disk: 32 n / bits of our bitmask file's parts, scales included.
    """

    as_the_paper_counts: float
    with_index: float
    on_disk: float


def encoder_compression(weights: int, kept: int, bits: int, bytes_on_disk: int) -> Compression:
    """Return the ratios of the prunable matrices (Prune Once for All, section 4, counts the first: 40x).

    Args:
        weights: elements of the matrices, n.
        kept: of these, stored.
        bits: of a stored value.
        bytes_on_disk: that the matrices take in the bitmask file.
    """
    dense = FP32_BITS * weights
    return Compression(
        as_the_paper_counts=dense / max(bits * kept, 1),
        with_index=dense / (bits * kept + weights),
        on_disk=dense / (8 * bytes_on_disk),
    )
