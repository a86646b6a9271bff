"""`launch doctor`. Thin: parses, calls one function, and prints."""

from typing import Annotated, Optional

import typer

from sparse_pretrain.cli_options import JsonOption, OverridesArgument, RecipeArgument, print_json


def register(launch_app: typer.Typer) -> None:
    """Add the command to `sparse-pretrain launch`."""
    launch_app.command("doctor")(doctor_command)


def doctor_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    nproc: Annotated[
        int, typer.Option(help="ranks on this machine; 0: one per GPU, or one when there is none", min=0)
    ] = 0,
    nodes: Annotated[
        int, typer.Option(help="check so many nodes of the cluster instead, by srun", min=0)
    ] = 0,
    ranks_per_node: Annotated[int, typer.Option("--ranks-per-node", help="with --nodes", min=1)] = 1,
    srun: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates the annotation
        typer.Option("--srun", help="an option for srun, such as --srun=--partition=gpu; repeatable"),
    ] = None,
    timeout: Annotated[float, typer.Option(help="seconds for all ranks to meet", min=1.0)] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Check the machines before a run: what would end it after hours, found in a minute.

    Same versions and sources on all ranks; the recipe's paths readable; the run folder shared and writable; free
    space; clocks; all-reduce, and the network between each two machines; slow cores and memory; the GPUs' health.
    When ranks don't meet, those that are missing are named. Machines should be idle meanwhile.

    One line a finding, with what to do. Exit code 1 when a run would fail; warnings don't count.

    Try: `sparse-pretrain launch doctor bert-base-85 --nodes 4 --ranks-per-node 8 --srun=--gpus-per-node=8`
    """
    from launcher.doctor.report import render
    from launcher.doctor.run import examine_here, examine_nodes
    from launcher.environment import find_machine
    from sparse_pretrain.config.load import load_recipe
    from sparse_pretrain.config.recipe import TrainRecipe
    from sparse_pretrain.errors import UserError

    if nodes and nproc:
        raise UserError(
            f"--nodes = {nodes} and --nproc = {nproc}: nodes of the cluster or this machine, not both"
        )
    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    if nodes:
        shape = [f"--nodes={nodes}", f"--ntasks-per-node={ranks_per_node}"]
        report = examine_nodes(settings, [*shape, *(srun or [])], timeout)
    else:
        report = examine_here(settings, nproc or max(1, len(find_machine().gpus)), timeout)
    if as_json:
        print_json(report.to_json())
    else:
        print("\n".join(render(report)))
    raise typer.Exit(0 if report.ok else 1)
