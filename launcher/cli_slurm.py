"""`launch slurm` and `launch render`: thin, like every command."""

import sys
from collections.abc import Mapping, Sequence
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
from sparse_pretrain.errors import UserError

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
MinNodesOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="start, and start again, with so few when not all --nodes are free"),
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
    recipe: Annotated[
        str, typer.Argument(help="a YAML file, or the name of a shipped recipe; or a pipeline's file")
    ],
    overrides: OverridesArgument = None,
    site: SiteOption = None,
    nodes: NodesOption = None,
    ranks_per_node: RanksOption = None,
    time: TimeOption = None,
    name: NameOption = None,
    min_nodes: MinNodesOption = None,
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
    redo: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="of a pipeline: do this stage anew although it is done; repeatable"),
    ] = None,
    allow_change: AllowChangeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe, write its sbatch script into the run folder, and submit it.

    Run the same command again to continue from the newest checkpoint. Script, record and output lie in
    `RUN/slurm/`.

    A file with `stages` is a pipeline: data, teacher, pruning, release, fine-tuning, each a job that starts when those
    it needs have succeeded. Run the same command again after a failure: what is done is not done again.

    Try: `sparse-pretrain launch slurm bert-base-85 output=/shared/runs/85 --nodes 2 --ranks-per-node 8`

    Try: `sparse-pretrain launch slurm pipeline.yaml --dry-run`
    """
    from launcher.pipeline.spec import is_pipeline

    if is_pipeline(recipe):
        of_a_run = {
            "--nodes": nodes,
            "--ranks-per-node": ranks_per_node,
            "--min-nodes": min_nodes,
            "--time": time,
            "--name": name,
            "--chain": chain or None,
            "--force": force or None,
            "--allow-change": allow_change or None,
        }
        launch_pipeline(recipe, overrides or [], site, redo or [], of_a_run, dry_run, as_json)
        return
    if redo:
        raise UserError(f"--redo {redo[0]}: {recipe} is a recipe; only a pipeline has stages")
    from launcher.render import render
    from launcher.site import load_site
    from launcher.submit import Request, check_before_the_queue, prepare_job, submit, to_json

    settings, site_file = load_site(site)
    request = Request(
        recipe, tuple(overrides or ()), nodes, ranks_per_node, time, name, allow_change, min_nodes
    )
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


def launch_pipeline(
    file: str,
    overrides: Sequence[str],
    site: str | None,
    redo: Sequence[str],
    of_a_run: Mapping[str, object],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a pipeline's stages; `of_a_run` are the options that only a single run takes."""
    from dataclasses import asdict

    from launcher.pipeline.look import plan_pipeline
    from launcher.pipeline.spec import load_pipeline
    from launcher.pipeline.stages import stage_jobs
    from launcher.pipeline.submit import describe, stage_scripts, submit_pipeline

    given = [option for option, value in of_a_run.items() if value is not None]
    if given:
        raise UserError(f"{given[0]}: {file} is a pipeline; write it into a stage")
    pipeline = load_pipeline(file, overrides)
    stages = stage_jobs(pipeline, site, Path.cwd())
    output = pipeline.output.absolute()
    if dry_run:
        decisions = plan_pipeline(stages, output, redo)
        for name, script in stage_scripts(decisions).items():
            typer.echo(f"# ==== {name} ====\n{script}")
        for decision in decisions:
            typer.echo(describe(decision), err=True)
        typer.echo("dry run: nothing was submitted", err=True)
        return
    record = submit_pipeline(file, stages, output, redo, lambda line: typer.echo(line, err=as_json))
    if as_json:
        print_json(asdict(record))
    else:
        typer.echo(f"sparse-pretrain launch status {pipeline.output}")


def render_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    site: SiteOption = None,
    nodes: NodesOption = None,
    ranks_per_node: RanksOption = None,
    time: TimeOption = None,
    name: NameOption = None,
    min_nodes: MinNodesOption = None,
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
    request = Request(
        recipe, tuple(overrides or ()), nodes, ranks_per_node, time, name, allow_change, min_nodes
    )
    job, _ = prepare_job(request, settings, Path.cwd())
    sys.stdout.write(render(settings, job))
