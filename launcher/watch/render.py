"""The table of `launch status`: a line a run, and below it what needs attention."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console
from rich.live import Live
from rich.text import Text

from launcher.watch.status import RunStatus

HEADER = ("run", "state", "ranks", "step", "loss", "sparsity", "tokens/s", "left", "starts", "checkpoint")
SHOWN_HOSTS = 4
SHOWN_RANKS = 8


def render_runs(runs: Sequence[RunStatus]) -> list[str]:
    """Return the lines of the table, then one for each thing to know about a run."""
    lines = as_table([HEADER, *(row(run) for run in runs)])
    return [*lines, *(note for run in runs for note in notes(run))]


def as_table(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return lines with columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def row(run: RunStatus) -> tuple[str, ...]:
    """Return a run's cells."""
    share = f" ({run.step / run.steps:.0%})" if run.step is not None and run.steps else ""
    saved = "-"
    if run.checkpoint_step is not None and run.checkpoint_age is not None:
        saved = f"{run.checkpoint_step:,} ({show_seconds(run.checkpoint_age)} ago)"
    return (
        run.run,
        run.state,
        f"{run.ranks}/{run.ranks_expected}" if run.ranks_expected else "-",
        f"{run.step:,}/{run.steps:,}{share}" if run.step is not None and run.steps is not None else "-",
        "-" if run.loss is None else f"{run.loss:.3f}",
        "-" if run.sparsity is None else f"{run.sparsity:.1%}",
        "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
        "-" if run.seconds_left is None else show_seconds(run.seconds_left),
        "-" if run.starts is None else str(run.starts),
        saved,
    )


def show_progress(run: RunStatus) -> str:
    """Return a run's state and numbers in one line."""
    _, state, _, step, loss, sparsity, _, left, *_ = row(run)
    parts = [state]
    parts += [f"step {step}"] if run.step is not None else []
    parts += [f"loss {loss}"] if run.loss is not None else []
    parts += [f"sparsity {sparsity}"] if run.sparsity is not None else []
    parts += [f"{left} left"] if run.seconds_left is not None else []
    return ", ".join(parts)


def notes(run: RunStatus) -> list[str]:
    """Return what to know beside the numbers: why it waits, where it runs, who holds it up."""
    lines = [run.detail] if run.detail is not None else []
    if run.is_running and run.hosts:
        more = f" and {len(run.hosts) - SHOWN_HOSTS} more" if len(run.hosts) > SHOWN_HOSTS else ""
        job = f"job {run.job_id} " if run.job_id is not None else ""
        lines.append(f"{job}on {', '.join(run.hosts[:SHOWN_HOSTS])}{more}")
    lines += [f"node {node}" for node in run.bad_nodes]
    for one in run.behind[:SHOWN_RANKS]:
        host = f" on {one.host}" if one.host is not None else ""
        said = f"; its log ends: {one.last_line}" if one.last_line is not None else ""
        lines.append(f"rank {one.rank}{host} {one.why}{said}")
    if len(run.behind) > SHOWN_RANKS:
        lines.append(f"and {len(run.behind) - SHOWN_RANKS} more ranks")
    if run.state == "stuck":
        lines.append(f"where they are: sparse-pretrain launch logs {run.run} --stacks")
    if run.slurm_problem is not None:
        lines.append(f"SLURM was not asked: {run.slurm_problem}")
    return [f"{run.run}: {line}" for line in lines]


def watch_live(console: Console, look: Callable[[], list[str]], every: float) -> None:
    """Show lines anew every few seconds until Ctrl-C; what was shown last stays."""
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            lines = [*look(), time.strftime("%H:%M:%S, Ctrl-C to leave")]
            live.update(Text("\n".join(lines)), refresh=True)
            time.sleep(every)


def show_seconds(seconds: float) -> str:
    """Return a time for people, in two units: `42 s`, `3 min`, `5 h 12 min`, `2 d 3 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
