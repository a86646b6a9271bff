"""What the mask benchmark measures, and how its numbers are shown; loads neither torch nor DeepSpeed."""

from typing import Any

from rich.console import Console
from rich.table import Table

from sparse_pretrain.config.base import Section

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256},
    "bert-base": {},
    "bert-large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}


class MaskBenchSettings(Section):
    """What is measured; the result repeats it."""

    model: str = "bert-base"
    rows: int = 4
    length: int = 512
    steps: int = 8
    updates: int = 5
    stage: int = 2
    allocation: str = "global"


def render(numbers: dict[str, Any], console: Console) -> None:
    """Print the numbers beside what the project promises."""
    title = (
        f"{numbers['model']}, {numbers['prunable_weights']:,} prunable weights, {numbers['ranks']} ranks at ZeRO "
        f"{numbers['stage']}, {numbers['precision']}, {numbers['rows']} x {numbers['length']} tokens a rank, "
        f"{numbers['device']}"
    )
    table = Table("", "bool", "packed", "at most", title=title)
    table.add_row(
        "mask update / torch.kthvalue of the same weights", f"{numbers['update_ratio']:.2f}", "", "2"
    )
    table.add_row(
        "mask work / step",
        f"{numbers['step_overhead']:.2%}",
        f"{numbers['packed_step_overhead']:.2%}",
        "3 %",
    )
    table.add_row(
        "step with pruning / without",
        f"{numbers['pruned_step_ratio']:.3f}",
        f"{numbers['packed_pruned_step_ratio']:.3f}",
        "1.05",
    )
    table.add_row(
        "bytes a weight",
        f"{numbers['bytes_per_weight']:.3f}",
        f"{numbers['packed_bytes_per_weight']:.3f}",
        "1, 0.125",
    )
    table.add_row("one update", f"{numbers['update_seconds']:.2f} s", "", "")
    table.add_row("one step without masks", f"{numbers['step_seconds']:.2f} s", "", "")
    console.print(table)
