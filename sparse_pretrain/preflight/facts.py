"""What one rank says of itself and its machine."""

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import sparse_pretrain
from sparse_pretrain.preflight.gpu import GpuFacts, look_at_gpus
from sparse_pretrain.training.provenance import PACKAGES


@dataclass(frozen=True)
class RankFacts:
    """Facts of one rank; only what was asked for.

    Attributes:
        rank: its number.
        host: its machine.
        versions: of Python and the packages that results depend on; "missing" where there is none.
        commit: of the checkout; None outside of one, or where nobody asked git because the sources are the same.
        code: digest of this package's own sources.
        hidden: paths of the recipe that this rank cannot read.
        write_problem: why it cannot write to the run folder; None when it can.
        unseen: ranks whose files in the run folder it does not see.
        free_bytes: free in the run folder; None when it is not there.
        clock: seconds since 1970, at a moment that is the same for all ranks but for a network delay.
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
    gpus: tuple[GpuFacts, ...] = ()


def collect(rank: int, local_rank: int, paths: Sequence[Path], run_folder: Path) -> RankFacts:
    """Return a rank's facts, except for those that ranks find out together.

    Args:
        rank: of this process.
        local_rank: among those of its machine; the first looks at the GPUs.
        paths: that must be readable.
        run_folder: of the run.
    """
    return RankFacts(
        rank=rank,
        host=platform.node(),
        versions=versions(),
        code=code_digest(),
        hidden=tuple(str(path) for path in paths if not os.access(path, os.R_OK)),
        free_bytes=free_bytes(run_folder),
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
