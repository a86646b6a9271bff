"""One rank of `plan --measure`: settings in, constants out, both as files."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sparse_pretrain.costs.hardware import GIB
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.telemetry.console import redirect_output
from sparse_pretrain.telemetry.rank_log import RankLog
from sparse_pretrain.training.world import World, join_world, rank_from_environment

# A GPU core is filled by more rows than a CPU's.
GPU_SCALE = 8
WRITE_BYTES = 2**27
# The one fitted constant (docs/planning.md): kernels timed alone find warmer caches than in a step. Of GPUs unknown.
CPU_IN_STEP = 1.1


def main(folder: Path) -> None:
    """Measure what `settings.json` says; rank 0 writes `result.json`."""
    rank, _, _ = rank_from_environment()
    redirect_output(RankLog(folder, rank), speaks=rank == 0)
    world = join_world()
    result = measure_rank(world, folder, read_json(folder / "settings.json"))
    if world.is_first:
        write_json(folder / "result.json", result)
    world.barrier()
    dist.destroy_process_group()


def measure_rank(world: World, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a `MeasuredLink`, or a `Device` without links."""
    if settings["links"]:
        from sparse_pretrain.costs.measure_links import measure_links

        return measure_links(world, settings["precisions"]).model_dump()
    return measure_alone(world, folder, settings["precisions"])


def measure_alone(world: World, folder: Path, precisions: list[Any]) -> dict[str, Any]:
    """Return a device's constants as this rank finds them alone."""
    import sparse_pretrain.training.build  # noqa: F401 - what a rank loads counts as its framework
    from sparse_pretrain.bench.masks import device_name
    from sparse_pretrain.costs.measure_engine import measure_engine
    from sparse_pretrain.costs.measure_kernels import measure_kernels
    from sparse_pretrain.training.heap import keep_freed_memory
    from sparse_pretrain.training.precision import DTYPES

    device, reserved = world.device, float(resident_bytes())
    on_gpu = device.type == "cuda"
    if not on_gpu:
        keep_freed_memory()
    kernels, flops = {}, {}
    for precision in precisions:
        found = measure_kernels(device, DTYPES[precision], GPU_SCALE if on_gpu else 1)
        found |= measure_engine(device, precision, found)
        kernels[precision] = found
        flops[precision] = 1 / found["linear forward"].per_flop
    stream = kernels[precisions[-1]]["stream"].per_element
    return {
        "name": device_name(device),
        "source": f"measured, torch {torch.__version__}",
        "kind": "gpu" if on_gpu else "cpu",
        "flops": flops,
        "matmul_fraction": 1.0,
        "memory": memory_bytes(device),
        "bandwidth": 1 / stream,
        "bandwidth_fraction": 1.0,
        "in_step": 1.0 if on_gpu else CPU_IN_STEP,
        "overlap": 0.7 if on_gpu else 0.0,
        "reserved": 2.0 * GIB if on_gpu else reserved,
        "kernels": {
            precision: {name: cost.model_dump() for name, cost in found.items()}
            for precision, found in kernels.items()
        },
        # One rank has no links; of several the measured ones count.
        "local": {"bytes_per_s": 1 / stream},
        "write": write_rate(folder),
    }


def memory_bytes(device: torch.device) -> float:
    """Return the memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def resident_bytes() -> int:
    """Return the memory that this process holds now (Linux; elsewhere a usual number)."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() else GIB


def write_rate(folder: Path) -> float:
    """Return the bytes a second of one large file with fsync."""
    data = os.urandom(WRITE_BYTES)
    began = time.perf_counter()
    with (folder / "written").open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return WRITE_BYTES / (time.perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
