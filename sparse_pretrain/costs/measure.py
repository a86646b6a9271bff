"""`plan --measure`: this machine's constants, for `plan --gpu FILE`."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.environment import find_machine
from launcher.local import launch_ranks
from sparse_pretrain.costs.clock import usable_cores
from sparse_pretrain.costs.hardware import Device
from sparse_pretrain.errors import FailedError
from sparse_pretrain.files import read_json, write_json

PRECISIONS = ("bf16", "fp32")


def measure(precisions: Sequence[str] = PRECISIONS, ranks: Sequence[int] = ()) -> Device:
    """Measure kernels and engine on one rank, then collectives on several (about a minute).

    Args:
        precisions: to measure.
        ranks: numbers of ranks between which collectives are measured; none: 2 and 4, or all GPUs.

    Raises:
        FailedError: a rank failed; its last lines were printed.
    """
    gpus = len(find_machine().gpus)
    wanted = list(ranks) or ([n for n in (2, 4, 8) if n <= gpus] if gpus else [2, 4])
    alone = run_ranks({"precisions": list(precisions), "links": False}, 1)
    links = [run_ranks({"precisions": list(precisions), "links": True}, count) for count in wanted]
    return Device.model_validate({**alone, "local_measured": links, "cores": 0 if gpus else usable_cores()})


def run_ranks(settings: dict[str, Any], ranks: int) -> dict[str, Any]:
    """Run `measure_rank` on several ranks and return what rank 0 wrote."""
    with tempfile.TemporaryDirectory(prefix="measure-") as name:
        folder = Path(name)
        write_json(folder / "settings.json", settings)
        code = launch_ranks([sys.executable, "-m", "sparse_pretrain.costs.measure_rank", name], ranks, folder)
        if code:
            raise FailedError(f"the measuring ranks ended with exit code {code}")
        result: dict[str, Any] = read_json(folder / "result.json")
        return result
