"""Memory that a step frees stays with the process: the next step takes it again without asking the system."""

import ctypes
import sys

# From malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
NEVER = -1
PAD_BYTES = 2**28


def keep_freed_memory() -> bool:
    """Tell glibc's malloc never to give memory back; a quarter of a step on a CPU went into getting it anew.

    By default every tensor above 32 MiB is mapped for itself, zeroed page by page at first touch, and unmapped
    again. What a process holds is then its peak, which it needs in every step anyway. One arena: what the backward
    pass's thread frees is the forward pass's to take.

    Returns:
        False where malloc is another one (musl, macOS, a preloaded jemalloc does not listen either).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, NEVER), (TOP_PAD, PAD_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)
