"""The tables of `measure.sh`: what `bench train` prints, and the kernels that take most of a step."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sparse_pretrain.bench.train_settings import render

KERNELS = 12


def main(folder: Path) -> None:
    """Print a table for every result in a folder."""
    console = Console(width=160)
    for path in sorted(folder.glob("bert-*.json")):
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            console.print(f"{path.name}: no result")
            continue
        render(numbers, console)
        for case in numbers["cases"]:
            console.print(f"MFU with teacher {case['mfu_pruning_teacher']:.1%}")
            for mode, sides in case["modes"].items():
                table = Table("kernel", "calls", "ms", "share", title=f"{case['model']}, {mode}")
                for row in sides["ours"].get("profile", [])[:KERNELS]:
                    table.add_row(
                        row["name"][:90],
                        str(row["calls"]),
                        f"{1e3 * row['seconds']:.2f}",
                        f"{row['share']:.1%}",
                    )
                if table.row_count:
                    console.print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
