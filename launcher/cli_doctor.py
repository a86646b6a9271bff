"""`launch doctor`. Thin: parses, calls one function, and prints."""

from typing import Annotated, Optional

import typer

from launcher.cli_slurm import RanksOption, SiteOption
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
    site: SiteOption = None,
    nodes: Annotated[
        int,
        typer.Option(
            help="check so many nodes of the cluster, by srun; with --site by default the site's", min=0
        ),
    ] = 0,
    ranks_per_node: RanksOption = None,
    srun: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates the annotation
        typer.Option("--srun", help="a further option for srun, such as --srun=--nodelist=gpu07; repeatable"),
    ] = None,
    timeout: Annotated[float, typer.Option(help="seconds for all ranks to meet", min=1.0)] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Check the machines before a run: what would end it after hours, found in a minute.

    Same versions and sources on all ranks; the recipe's paths readable; the run folder shared and writable; free
    space; clocks; all-reduce, and the network between each two machines; slow cores and memory; the GPUs' health.
    When ranks don't meet, those that are missing are named. Machines should be idle meanwhile.

    One line a finding, with what to do. Exit code 1 when a run would fail; warnings don't count.

    Nodes of a cluster are asked for, and ranks started there, as `launch slurm` would: by the same site.

    Try: `sparse-pretrain launch doctor bert-base-85 --site gpu-accounts --nodes 4`
    """
    from launcher.doctor.report import render
    from launcher.doctor.run import examine_here, examine_nodes
    from launcher.doctor.srun import srun_options
    from launcher.environment import find_machine
    from launcher.site import load_site
    from sparse_pretrain.config.load import load_recipe
    from sparse_pretrain.config.recipe import TrainRecipe
    from sparse_pretrain.errors import UserError

    if nproc and (nodes or site is not None):
        asked = f"--nodes = {nodes}" if nodes else f"--site = {site}"
        raise UserError(f"{asked} and --nproc = {nproc}: nodes of the cluster or this machine, not both")
    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    if nodes or site is not None:
        cluster, _ = load_site(site)
        options = srun_options(cluster, nodes or cluster.nodes, ranks_per_node or cluster.ranks_per_node)
        report = examine_nodes(settings, cluster, [*options, *(srun or [])], timeout)
    else:
        report = examine_here(settings, nproc or max(1, len(find_machine().gpus)), timeout)
    if as_json:
        print_json(report.to_json())
    else:
        print("\n".join(render(report)))
    raise typer.Exit(0 if report.ok else 1)
