"""Start the ranks of a benchmark and bring their numbers back."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from launcher.environment import find_machine
from launcher.local import launch_ranks
from sparse_pretrain.config.base import Section
from sparse_pretrain.errors import FailedError
from sparse_pretrain.files import read_json, write_text


def run_bench(name: str, settings: Section, nproc: int, folder: Path | None = None) -> dict[str, Any]:
    """Run a benchmark on `nproc` ranks of this machine; return what its `measure` does.

    Args:
        name: `masks`, `checkpoint` or `train`.
        settings: its own.
        nproc: ranks; 0: one a GPU, or two where there is none.
        folder: where it may write (a fresh folder is made in it and deleted); none: the system's temporary one.

    Raises:
        FailedError: a rank failed; its last lines were printed.
    """
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", dir=folder) as place:
        workplace = Path(place)
        write_text(workplace / "settings.json", settings.model_dump_json())
        ranks = nproc or len(find_machine().gpus) or 2
        command = [sys.executable, "-m", "sparse_pretrain.bench.rank", name, place]
        code = launch_ranks(command, ranks, workplace)
        if code:
            raise FailedError(f"the benchmark's ranks ended with exit code {code}")
        result: dict[str, Any] = read_json(workplace / "result.json")
        return result
