"""What a training step's time goes into: the operations that take most of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

ROWS = 25


def profiled(step: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """Do one more step under torch's profiler.

    Returns:
        For each operation (of a GPU: kernel), the longest first: `name`, `calls`, `seconds` of its own, and `share` of
        all.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
    times = [
        (
            event.key,
            event.count,
            1e-6 * (event.self_device_time_total if on_gpu else event.self_cpu_time_total),
        )
        for event in found.key_averages()
    ]
    total = sum(seconds for *_, seconds in times) or 1.0
    times.sort(key=lambda row: -row[2])
    return [
        {"name": name, "calls": calls, "seconds": seconds, "share": seconds / total}
        for name, calls, seconds in times[:ROWS]
    ]
