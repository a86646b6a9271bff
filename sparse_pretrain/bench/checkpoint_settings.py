"""What the checkpoint benchmark measures, and how its numbers are shown; loads neither torch nor DeepSpeed."""

from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.config.base import Section


class CheckpointBenchSettings(Section):
    """What is measured; the result repeats it."""

    model: str = "bert-base"
    rows: int = 4
    length: int = 512
    rounds: int = 5
    stage: int = 2


def render(numbers: dict[str, Any], console: Console) -> None:
    """Print the numbers beside what the project promises."""
    title = (
        f"{numbers['model']}, {numbers['bytes'] / 1e6:,.0f} MB a checkpoint, {numbers['ranks']} ranks at ZeRO "
        f"{numbers['stage']}, steps of {numbers['step_seconds']:.2f} s, {numbers['device']}"
    )
    table = Table("", "measured", "wanted", title=title)
    table.add_row(
        "training waits, asynchronous / synchronous save", f"{numbers['async_stall_ratio']:.1%}", "<= 10 %"
    )
    table.add_row("  synchronous", f"{numbers['sync_seconds']:.2f} s", "")
    table.add_row("  asynchronous", f"{numbers['async_stall_seconds']:.3f} s", "")
    table.add_row("  steps meanwhile take longer, in all", f"{numbers['async_slowdown_seconds']:.2f} s", "")
    table.add_row("write throughput / dd with fsync", f"{numbers['write_ratio']:.1%}", ">= 80 %")
    table.add_row("  dd", f"{numbers['dd_bytes_per_second'] / 1e6:,.0f} MB/s", "")
    table.add_row("bytes / the least possible", f"{numbers['size_ratio']:.4f}", "1")
    table.add_row("find, check and restore", f"{numbers['resume_s']:.2f} s", "")
    console.print(table)
