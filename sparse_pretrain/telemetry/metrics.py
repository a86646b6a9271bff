"""Read a run's `metrics.jsonl` back."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a metrics file in order; none when there is no file.

    A run that was killed leaves half a last line, and one on a full disk half a line in the middle: lines
    that are no JSON object with a step are passed over.
    """
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the rows of one kind: "train", "evaluation" or "masks"."""
    return [row for row in rows if row.get("kind") == kind]


def series(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of one number, without rows that lack it or where it is NaN or infinite."""
    values = [(row["step"], finite(row.get(key))) for row in rows]
    points = [(step, value) for step, value in values if value is not None]
    return [step for step, _ in points], [value for _, value in points]


def finite(value: object) -> float | None:
    """Return a number as float; None for NaN, infinity and everything that is no number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
