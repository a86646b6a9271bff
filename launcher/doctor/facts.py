"""What one rank says of itself and its machine."""

import hashlib
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np

import sparse_pretrain
from launcher.doctor.gpu import GpuFacts, look_at_gpus
from sparse_pretrain.training.provenance import PACKAGES, git_commit

CORE_SECONDS = 0.5
CORE_LOOPS = 2_000
MEMORY_BYTES = 64 * 2**20
MEMORY_ROUNDS = 5


@dataclass(frozen=True)
class RankFacts:
    """Facts of one rank; only what was asked for.

    Attributes:
        rank: its number.
        host: its machine.
        versions: of Python and the packages that results depend on; "missing" where there is none.
        commit: of the checkout, None outside of one.
        code: digest of this package's own sources.
        hidden: paths of the recipe that this rank cannot read.
        write_problem: why it cannot write to the run folder; None when it can.
        unseen: ranks whose files in the run folder it does not see.
        free_bytes: free in the run folder; None when it is not there.
        clock: seconds since 1970, at a moment that is the same for all ranks but for a network delay.
        core_rate: simple operations of one core a second; None when not measured.
        memory_rate: bytes copied a second; None when not measured.
        gpus: of its machine, on the first rank of each machine only.
    """

    rank: int
    host: str
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    code: str = ""
    hidden: tuple[str, ...] = ()
    write_problem: str | None = None
    unseen: tuple[int, ...] = ()
    free_bytes: int | None = None
    clock: float = 0.0
    core_rate: float | None = None
    memory_rate: float | None = None
    gpus: tuple[GpuFacts, ...] = ()


def collect(rank: int, local_rank: int, paths: Sequence[Path], run_folder: Path, speed: bool) -> RankFacts:
    """Return a rank's facts, except for those that ranks find out together.

    Args:
        rank: of this process.
        local_rank: among those of its machine; the first looks at the GPUs.
        paths: that must be readable.
        run_folder: of the run.
        speed: measure core and memory too, which takes a second; all ranks at the same time, as in training.
    """
    return RankFacts(
        rank=rank,
        host=platform.node(),
        versions=versions(),
        commit=git_commit(),
        code=code_digest(),
        hidden=tuple(str(path) for path in paths if not os.access(path, os.R_OK)),
        free_bytes=free_bytes(run_folder),
        core_rate=core_rate() if speed else None,
        memory_rate=memory_rate() if speed else None,
        gpus=look_at_gpus() if local_rank == 0 else (),
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that results depend on, as this rank finds them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def code_digest() -> str:
    """Return a digest of this package's sources: nodes may hold different copies of the same version."""
    digest = hashlib.sha256()
    root = Path(sparse_pretrain.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes where a folder is, or will be; None when that cannot be said."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    try:
        return shutil.disk_usage(there).free if there is not None else None
    except OSError:
        return None


def core_rate(seconds: float = CORE_SECONDS) -> float:
    """Return how many simple operations of Python this core does a second, over some wall-clock time.

    Wall-clock, and not the best of short bursts: a core that others use, or that a quota stops, is slow as well.
    """
    done = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        total = 0
        for number in range(CORE_LOOPS):
            total += number & 7
        done += CORE_LOOPS
    return done / spent


def memory_rate() -> float:
    """Return how many bytes a second this rank copies in memory, the best of a few times."""
    source = np.ones(MEMORY_BYTES, dtype=np.uint8)
    target = np.zeros_like(source)
    best = sys.float_info.max
    for _ in range(MEMORY_ROUNDS):
        started = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - started)
    return MEMORY_BYTES / best
