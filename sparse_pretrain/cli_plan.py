"""The command `plan`. Libraries are imported inside: `--help` must not wait for torch."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, OverridesArgument, print_json
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import UserError

# Columns of a table that goes to a file.
WIDTH = 130


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(plan)


def plan(
    recipe: Annotated[
        Optional[str],  # noqa: UP045 - typer evaluates the annotation
        typer.Argument(help="a YAML file, or the name of a shipped recipe; none with --measure"),
    ] = None,
    overrides: OverridesArgument = None,
    nodes: Annotated[int, typer.Option(help="machines", min=1)] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs (or CPU ranks) of each", min=1)] = 8,
    gpu: Annotated[
        str,
        typer.Option(
            help="h100, h200, a100-80gb, a100-40gb, v100, l40s, cpu, or a device file", metavar="NAME|FILE"
        ),
    ] = "h100",
    interconnect: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="between machines: 8x400g, 400g, 100g, ethernet-25g, …; default: what the GPU usually has"
        ),
    ] = None,
    length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="tokens of a row, before the data is prepared", min=8),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="draw predicted scaling to this PNG")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="a device file of --measure; the same as --gpu FILE", metavar="FILE")
    ] = None,
    measure: Annotated[
        Path | None,
        typer.Option(help="measure this machine (a minute) and write a device file", metavar="OUT"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict a run's memory, time, MFU and GPU-hours, and choose ZeRO stage and micro-batch.

    Nothing is loaded or trained; neither data nor GPUs need exist. Numbers are data-sheet rates times assumed
    efficiencies, or constants measured by `--measure`. See docs/planning.md.

    Example: `sparse-pretrain plan bert-base-85 --nodes 8 --gpus-per-node 8 --gpu h100 --figure scaling.png`

    Constants of this machine: `sparse-pretrain plan --measure here.json`, then `--gpu here.json`
    """
    if measure is not None:
        from sparse_pretrain.costs.hardware import save_device
        from sparse_pretrain.costs.measure import measure as measure_machine

        if recipe is not None:
            raise UserError(f"--measure {measure}: takes no recipe; plan with --gpu {measure} afterwards")
        device = measure_machine()
        save_device(measure, device)
        print_json(device.model_dump(mode="json")) if as_json else Console().print(
            f"{device.name}: {measure}"
        )
        return
    if recipe is None:
        raise UserError("plan: give a recipe, or --measure OUT.json")
    from sparse_pretrain.config.recipe import TrainRecipe
    from sparse_pretrain.costs.figure import draw
    from sparse_pretrain.costs.hardware import find_device, find_interconnect
    from sparse_pretrain.costs.job import job_of
    from sparse_pretrain.costs.predict import Choice, predict
    from sparse_pretrain.costs.report import numbers, render
    from sparse_pretrain.costs.scaling import scaling
    from sparse_pretrain.costs.search import search
    from sparse_pretrain.costs.time import Layout

    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    name = str(measured) if measured is not None else gpu
    device = find_device(name)
    wire, between = find_interconnect(interconnect, name)
    job = job_of(settings, device, length)
    layout = Layout(nodes * gpus_per_node, gpus_per_node, between)
    asked = predict(job, Choice(settings.engine.stage, settings.batch.micro_size), device, layout)
    found = search(job, device, layout)
    points = scaling(job, device, gpus_per_node, between)
    if figure is not None:
        draw(
            points, figure, f"{Path(recipe).stem}, {gpus_per_node} x {device.name} a node, {wire}; predicted"
        )
    if as_json:
        print_json(numbers(job, device, asked, found, points))
        return
    render(
        job, device, asked, found, points, wide_console(), f"{nodes} x {gpus_per_node} ({wire} between nodes)"
    )


def wide_console() -> Console:
    """Return a console whose tables are not cut in files and pipes."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)
