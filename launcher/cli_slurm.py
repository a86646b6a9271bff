"""`launch slurm` and `launch render`: thin, like every command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sparse_pretrain.cli_options import (
    AllowChangeOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    print_json,
)

if TYPE_CHECKING:
    from launcher.job import Job

SiteOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="the cluster's settings: a file, or a name in ~/.config/sparse-pretrain or of an example; "
        "default: $SPARSE_PRETRAIN_SITE, ~/.config/sparse-pretrain/site.yaml, SLURM's own"
    ),
]
NodesOption = Annotated[Optional[int], typer.Option(help="default: the site's")]  # noqa: UP045
RanksOption = Annotated[Optional[int], typer.Option(help="one a GPU; default: the site's")]  # noqa: UP045
TimeOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="limit of one job, such as 12:00:00 or 2-00; default: the site's"),
]
NameOption = Annotated[Optional[str], typer.Option(help="default: the run folder's name")]  # noqa: UP045


def register(launch_app: typer.Typer) -> None:
    """Add the commands to `sparse-pretrain launch`."""
    launch_app.command("slurm")(slurm_command)
    launch_app.command("render")(render_command)


def describe(job: "Job") -> str:
    """Say how large a job is, such as `4 ranks on 2 nodes`."""
    return f"{job.ranks} rank{'s' * (job.ranks != 1)} on {job.nodes} node{'s' * (job.nodes != 1)}"


def slurm_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    site: SiteOption = None,
    nodes: NodesOption = None,
    ranks_per_node: RanksOption = None,
    time: TimeOption = None,
    name: NameOption = None,
    chain: Annotated[
        int,
        typer.Option(
            min=0, help="follow-up jobs, where jobs may not requeue; each ends at once when all is done"
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the recipe, print the script, submit nothing")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="although a job of this run is queued or running")
    ] = False,
    allow_change: AllowChangeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe, write its sbatch script into the run folder, and submit it.

    Run the same command again to continue from the newest checkpoint. Script, record and output lie in
    `RUN/slurm/`.

    Try: `sparse-pretrain launch slurm bert-base-85 output=/shared/runs/85 --nodes 2 --ranks-per-node 8`
    """
    from launcher.render import render
    from launcher.site import load_site
    from launcher.submit import Request, check_before_the_queue, prepare_job, submit, to_json

    settings, site_file = load_site(site)
    request = Request(recipe, tuple(overrides or ()), nodes, ranks_per_node, time, name, allow_change)
    job, checked = prepare_job(request, settings, Path.cwd())
    script = render(settings, job)
    check_before_the_queue(settings, job, checked)
    done = [] if dry_run else submit(settings, site_file, job, chain, force)
    if as_json:
        print_json(to_json(job, site_file, script, done))
    elif dry_run:
        sys.stdout.write(script)
        typer.echo(f"dry run: nothing was submitted; {describe(job)}", err=True)
    else:
        for each in done:
            after = f", after {each.after}" if each.after else ""
            typer.echo(f"submitted job {each.job_id}{after}: {describe(job)}")
        typer.echo(f"output: {job.slurm_folder / f'job-{done[0].job_id}.out'}")


def render_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    site: SiteOption = None,
    nodes: NodesOption = None,
    ranks_per_node: RanksOption = None,
    time: TimeOption = None,
    name: NameOption = None,
    allow_change: AllowChangeOption = False,
) -> None:
    """Print the sbatch script of a job; write nothing, submit nothing.

    Read it, edit it, and submit it yourself: it needs nothing but `sbatch`.

    Try: `sparse-pretrain launch render bert-base-85 --site gpu-accounts > job.sbatch`
    """
    from launcher.render import render
    from launcher.site import load_site
    from launcher.submit import Request, prepare_job

    settings, _ = load_site(site)
    request = Request(recipe, tuple(overrides or ()), nodes, ranks_per_node, time, name, allow_change)
    job, _ = prepare_job(request, settings, Path.cwd())
    sys.stdout.write(render(settings, job))
