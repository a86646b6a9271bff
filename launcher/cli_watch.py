"""`launch status`, `logs`, `cancel`, `ls`. Thin: every command parses, calls one function, and prints."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, print_json

REFRESH_SECONDS = 3.0
BAD_STATES = ("stuck", "silent", "failed", "died")

RunArgument = Annotated[Path, typer.Argument(help="a run folder: the recipe's output")]


def register(launch_app: typer.Typer) -> None:
    """Add the commands to `sparse-pretrain launch`."""
    launch_app.command("status")(status_command)
    launch_app.command("logs")(logs_command)
    launch_app.command("cancel")(cancel_command)
    launch_app.command("ls")(ls_command)


def status_command(
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045 - typer evaluates the annotation
        typer.Argument(help="run folders, pipelines' folders or files"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="all runs below the present folder, and my jobs'")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="keep looking, until Ctrl-C")] = False,
    stuck_after: Annotated[
        float, typer.Option("--stuck-after", help="minutes without a step that make a run stuck", min=0.0)
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Show what runs are doing: state, step, loss, sparsity, speed, time left, newest checkpoint.

    Works for runs under SLURM and for those of `launch local`. A run is stuck when nothing has moved for
    `--stuck-after` minutes and ten of its own steps; then the ranks that hold it up are named, with their machines
    and the last lines of their logs. Reads small files only, and asks SLURM once. Of a pipeline, the stages are shown.

    Exit code 1 when a run is stuck, silent, failed, or died, or a stage has failed.

    Try: `sparse-pretrain launch status runs/bert-base-85 --watch`
    """
    from launcher.pipeline.record import find_pipeline
    from launcher.pipeline.status import PipelineStatus, describe_pipeline, render_pipeline
    from launcher.watch.everywhere import find_all
    from launcher.watch.folders import check_run
    from launcher.watch.render import render_runs, watch_live
    from launcher.watch.status import RunStatus, describe_runs
    from sparse_pretrain.errors import UserError

    if not runs and not every:
        raise UserError("status: which run? Give run folders, or --all for those below the present folder")
    pipelines = [found for run in runs or [] if (found := find_pipeline(run)) is not None]
    folders = [check_run(run) for run in runs or [] if find_pipeline(run) is None]

    def look() -> tuple[list[PipelineStatus], list[RunStatus]]:
        seen = dict.fromkeys([*folders, *(find_all(Path()) if every else [])])
        now, patience = time.time(), stuck_after * 60
        chains = [describe_pipeline(path, now, patience) for path in pipelines]
        return chains, describe_runs(list(seen), now, patience)

    def lines(chains: Sequence[PipelineStatus], singles: Sequence[RunStatus]) -> list[str]:
        shown = [line for chain in chains for line in render_pipeline(chain)]
        return shown + (render_runs(singles) if singles else [])

    console = Console(soft_wrap=True)
    if watch and not as_json:
        watch_live(console, lambda: lines(*look()), REFRESH_SECONDS)
        return
    chains, singles = look()
    if as_json:
        print_json([*map(asdict, chains), *map(asdict, singles)])
    else:
        for line in lines(chains, singles) or ["no runs below this folder"]:
            console.print(line, markup=False, highlight=False)
    bad = any(run.state in BAD_STATES for run in singles) or any(chain.has_failed for chain in chains)
    raise typer.Exit(1 if bad else 0)


def logs_command(
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until the run ends, or Ctrl-C")
    ] = False,
    rank: Annotated[
        Optional[int],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="only this rank's log", min=0),
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="lines of each log to begin with", min=0)] = 20,
    stacks: Annotated[
        bool, typer.Option("--stacks", help="show where every thread of every rank is; training goes on")
    ] = False,
) -> None:
    """Show what ranks and job have printed; with --stacks, where the ranks are right now.

    `--stacks` sends SIGQUIT to the ranks, through SLURM or on this machine; they write their stacks into their logs
    and go on. In a hung run, the rank whose stack differs from the others' is the one to look at.

    Try: `sparse-pretrain launch logs runs/bert-base-85 -f`
    """
    from launcher.watch.folders import check_run
    from launcher.watch.logs import follow as follow_logs
    from launcher.watch.logs import show_logs, show_stacks
    from launcher.watch.status import describe_runs

    folder = check_run(run)

    def say(line: str) -> None:
        print(line, flush=True)

    if stacks:
        show_stacks(folder, rank, say)
        return
    tails = show_logs(folder, rank, say, lines)
    if follow:
        waits = ("waiting", "unknown")

        def over() -> bool:
            (status,) = describe_runs([folder], time.time())
            return not status.is_running and status.state not in waits

        try:
            follow_logs(folder, rank, say, tails, over)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def cancel_command(
    run: Annotated[Path, typer.Argument(help="a run folder, or a pipeline's folder or file")],
    now: Annotated[
        bool, typer.Option("--now", help="kill it; steps after the newest checkpoint are lost")
    ] = False,
    wait: Annotated[float, typer.Option(help="seconds to wait for it to save and end", min=0.0)] = 600.0,
) -> None:
    """Stop a run: all ranks save together and leave; it is not requeued, and waiting jobs of it are cancelled.

    Of a pipeline, all stages.

    The same command that started it continues it. Exit code 1 when it still runs after `--wait` seconds.

    Try: `sparse-pretrain launch cancel runs/bert-base-85`
    """
    from launcher.pipeline.cancel import cancel_pipeline
    from launcher.pipeline.record import find_pipeline
    from launcher.watch.cancel import cancel
    from launcher.watch.folders import check_run

    def say(line: str) -> None:
        print(line, flush=True)

    pipeline = find_pipeline(run)
    if pipeline is None:
        cancel(check_run(run), say, now, wait)
    else:
        cancel_pipeline(pipeline, say, now, wait)


def ls_command(
    folder: Annotated[
        Path, typer.Argument(help="where to look; runs inside runs are not looked for")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """List all runs in and below a folder with their states.

    Try: `sparse-pretrain launch ls runs`
    """
    from launcher.watch.folders import find_runs
    from launcher.watch.render import render_runs
    from launcher.watch.status import describe_runs

    found = describe_runs(find_runs(folder.expanduser()), time.time())
    if as_json:
        print_json([asdict(run) for run in found])
        return
    for line in render_runs(found) if found else [f"{folder}: no runs"]:
        print(line)
