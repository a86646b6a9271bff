"""The one progress bar of every long command: what, how far, the numbers people watch, time spent and left."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(
    console: Console, how_far: ProgressColumn | None = None, transient: bool = False
) -> Progress:
    """Return a bar whose tasks carry a `numbers` field; shown on terminals only.

    Args:
        console: where.
        how_far: the column after the bar; by default `done/total`.
        transient: True removes the bar at the end.
    """
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        how_far or MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=transient,
    )
