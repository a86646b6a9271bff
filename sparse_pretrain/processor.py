"""What this machine's processor is, and what it can multiply (x86 under Linux; elsewhere little is known)."""

import platform
from functools import lru_cache
from pathlib import Path

# With one of these, int8 products are added in 32 bits.
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}


@lru_cache(maxsize=1)
def first_core() -> dict[str, str]:
    """Return what Linux says of the first core, such as `model name` and `flags`; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor_name() -> str:
    """Return the processor's name, or what kind of processor it is."""
    return first_core().get("model name") or platform.processor() or platform.machine() or "CPU"


def processor_flags() -> frozenset[str]:
    """Return its instruction sets by Linux's names, such as `avx2`; empty where they are not known."""
    return frozenset(first_core().get("flags", "").split())


def overflows_in_int8() -> bool:
    """Say whether engines' products of uint8 and int8 overflow here: pairs of them are added in 16 bits and cut off.

    So it is with AVX2 and AVX-512 where there is no VNNI.
    """
    flags = processor_flags()
    return "avx2" in flags and not flags & VNNI
