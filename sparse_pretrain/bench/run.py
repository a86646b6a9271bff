"""Start the ranks of a benchmark and bring their numbers back."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from launcher.environment import find_machine
from launcher.local import launch_ranks
from sparse_pretrain.bench.mask_settings import MaskBenchSettings
from sparse_pretrain.files import read_json, write_text


def bench_masks(settings: MaskBenchSettings, nproc: int) -> dict[str, Any]:
    """Run the mask benchmark on `nproc` ranks of this machine; return what `bench.masks.measure` does.

    With `nproc` 0: one rank a GPU, or two where there is none.

    Raises:
        RuntimeError: a rank failed; its last lines were printed.
    """
    with tempfile.TemporaryDirectory(prefix="bench-masks-") as name:
        folder = Path(name)
        write_text(folder / "settings.json", settings.model_dump_json())
        ranks = nproc or len(find_machine().gpus) or 2
        code = launch_ranks([sys.executable, "-m", "sparse_pretrain.bench.rank", name], ranks, folder)
        if code:
            raise RuntimeError(f"the benchmark's ranks ended with exit code {code}")
        result: dict[str, Any] = read_json(folder / "result.json")
        return result
