"""What the user sees while a source is read."""

from rich.console import Console
from rich.progress import TaskProgressColumn

from data_prep.sources.base import Source
from data_prep.tally import Tally, describe_drops
from sparse_pretrain.telemetry.bar import progress_bar


class SourceProgress:
    """A bar a source on a terminal; one line a source, when it is done, everywhere.

    Used as a context manager around the whole preparation.
    """

    def __init__(self, console: Console) -> None:
        """Show nothing yet."""
        self._console = console
        self._progress = progress_bar(console, TaskProgressColumn(), transient=True)

    def __enter__(self) -> "SourceProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, source: Source) -> None:
        """Begin a source's bar."""
        self._task = self._progress.add_task(source.kind, total=source.total or None, numbers="")

    def update(self, source: Source, tally: Tally, rows: int) -> None:
        """Show how far a source has come; `rows` counts all sources."""
        task = self._progress.tasks[-1]
        rate = tally.characters / task.elapsed / 1e6 if task.elapsed else 0.0
        numbers = f"{tally.documents:,} documents  {rows:,} rows  {rate:.2f} M characters/s"
        self._progress.update(self._task, completed=source.position, numbers=numbers)

    def finish(self, source: Source, tally: Tally) -> None:
        """Replace the source's bar by a line that stays."""
        self._progress.remove_task(self._task)
        dropped = tally.dropped_by_reason()
        tell(
            self._console,
            f"{source.name}: {tally.documents:,} documents, {tally.characters:,} characters"
            + (f"; dropped {describe_drops([dropped])}" if dropped else ""),
        )


def tell(console: Console, line: str) -> None:
    """Print a line as it is: names of files may hold brackets, and scripts want them unbroken."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
