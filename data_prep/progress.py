"""What the user sees while data is prepared."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import TaskProgressColumn

from data_prep.selection import Tally
from sparse_pretrain.telemetry.bar import progress_bar


class StageProgress:
    """A bar a stage on a terminal: share done, rate, time left. Used as a context manager."""

    def __init__(self, console: Console) -> None:
        """Show nothing yet."""
        self._progress = progress_bar(console, TaskProgressColumn(), transient=True)

    def __enter__(self) -> "StageProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, name: str, sizes: Sequence[int], unit: str) -> Callable[[int], None]:
        """Begin a stage's bar; return what to call with the number of each task that is finished.

        Args:
            name: of the stage.
            sizes: of its tasks.
            unit: of the sizes; bytes are shown in millions.
        """
        task = self._progress.add_task(name, total=sum(sizes) or None, numbers="")
        done = 0

        def finished(number: int) -> None:
            nonlocal done
            done += 1
            self._progress.advance(task, sizes[number])
            shown = next(one for one in self._progress.tasks if one.id == task)
            rate = f"{shown.speed / 1e6:.2f} M {unit}/s" if shown.speed else ""
            self._progress.update(task, numbers=f"{done:,}/{len(sizes):,} parts  {rate}")
            if done == len(sizes):
                self._progress.remove_task(task)

        return finished


def describe_source(name: str, tally: Tally) -> str:
    """Return a source's line: what was kept, what was dropped and why, what was damaged."""
    line = f"{name}: {tally.documents:,} documents, {tally.characters:,} characters"
    line += f"; dropped {describe_counts([tally.dropped])}" if tally.dropped else ""
    return line + (f"; faults, the rest is used: {describe_counts([tally.faults])}" if tally.faults else "")


def describe_counts(counts: Sequence[Mapping[str, int]]) -> str:
    """Return counts, summed over sources, as words: `3 redirect, 1 too_short`."""
    total: dict[str, int] = {}
    for one in counts:
        for reason, count in one.items():
            total[reason] = total.get(reason, 0) + count
    return ", ".join(f"{count:,} {reason}" for reason, count in total.items()) or "none"


def tell(console: Console, line: str) -> None:
    """Print a line as it is: names of files may hold brackets, and scripts want them unbroken."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)
