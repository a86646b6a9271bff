"""The `sparse-pretrain` command. Thin: every command parses, calls one function, and prints.

Libraries are imported inside the commands: `--help` must not wait for torch.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from data_prep.cli import tokenizer_app
from launcher import cli_doctor, cli_local, cli_slurm, cli_watch
from sparse_pretrain import __version__, cli_bench, cli_export, cli_finetune, cli_plan
from sparse_pretrain.cli_checkpoint import app as checkpoint_app
from sparse_pretrain.cli_options import (
    AllowChangeOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    print_json,
    whole_numbers,
)
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.imports import quick_imports

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Sparse pre-trained language models: prune once during pre-training, fine-tune for every task.\n\n"
    "The story in five commands: `data prepare`, `train` (teacher), `train` (pruned student), `release`, "
    "`finetune`. `sparse-pretrain demo` runs all of it, small, on real text.",
    epilog="Exit codes: 0 done, 1 failure, 2 a mistake in the input (one line says which), "
    "75 stopped by a signal after saving: run the same command to continue.",
)
data_app = typer.Typer(no_args_is_help=True, help="Raw text to packed token shards.")
launch_app = typer.Typer(no_args_is_help=True, help="Start the ranks of a run.")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(launch_app, name="launch")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(cli_export.app, name="export")


@app.command("recipes")
def recipes_command() -> None:
    """List the shipped recipes and what each is for (the first comment line of the file)."""
    from sparse_pretrain.shipped import shipped_recipes

    console = Console()
    paths = shipped_recipes()
    width = max(len(path.stem) for path in paths) + 2
    for path in paths:
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        console.print(f"[bold]{path.stem:<{width}}[/bold]{first}", highlight=False, soft_wrap=True)


@data_app.command("prepare")
def data_prepare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="run the tasks on a cluster; this process waits for them")
    ] = False,
    site: cli_slurm.SiteOption = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="run the tasks on a Ray cluster: HOST:PORT, auto or local"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn raw sources into packed shards and `manifest.json`.

    Killed at any moment, the same command continues. With `--slurm` every stage is an array job, on folders that all
    nodes see; with `--ray` the stages are tasks on a Ray cluster, alike (the extra `sparse-pretrain[ray]`).

    Example: `sparse-pretrain data prepare data-wikipedia-books-512 output=data/wiki-books-512`
    """
    from data_prep.prepare import prepare
    from data_prep.recipe import PrepareRecipe

    settings = load_recipe(recipe, overrides or [], PrepareRecipe)
    connection: AbstractContextManager[Any] = nullcontext()
    if ray is not None:
        from data_prep.engine_ray import ray_engine

        if slurm or site is not None:
            raise UserError("--ray and --slurm: choose one of them")
        connection = ray_engine(ray)
    if slurm or site is not None:
        from data_prep.engine_slurm import SlurmEngine
        from launcher.prepare_site import slurm_settings
        from launcher.site import load_site

        connection = nullcontext(SlurmEngine(slurm_settings(load_site(site)[0])))
    with connection as engine:
        manifest = prepare(settings, Console(stderr=as_json), engine)
    if as_json:
        print_json(manifest.model_dump(mode="json"))


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="a prepared folder")],
    png: Annotated[Path | None, typer.Option(help="draw the rows' lengths to this file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show counts, fill, row lengths, frequent and unknown tokens, samples and an integrity check.

    Exit code 1 when a file is not what the manifest says.
    """
    from data_prep.inspect import draw, inspect, render

    report = inspect(folder)
    if png is not None:
        draw(report, png)
    print_json(report) if as_json else render(report, Console())
    raise typer.Exit(0 if report["intact"] else 1)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved recipe and what it needs, then exit")
    ] = False,
    ranks: Annotated[int, typer.Option(help="number of ranks that --dry-run plans for", min=1)] = 1,
    allow_change: AllowChangeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train: teacher preparation or student pruning, whichever the recipe describes.

    One process is one rank: alone, under torchrun, under srun, or started by `launch local`. Run the
    same command again to continue from the newest checkpoint.
    """
    from sparse_pretrain.config.recipe import TrainRecipe

    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    if dry_run:
        from sparse_pretrain.training.plan import plan, render

        numbers = plan(settings, ranks)
        print_json(numbers) if as_json else render(settings, numbers, Console())
        return
    with quick_imports():
        from sparse_pretrain.training.run import train as run_training
    raise typer.Exit(run_training(settings, allow_change))


@app.command("teacher-logits")
def teacher_logits(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="folder to write; the same command continues one")],
    overrides: OverridesArgument = None,
    top_k: Annotated[int, typer.Option(help="tokens kept at every position", min=1)] = 64,
    as_json: JsonOption = False,
) -> None:
    """Store the teacher's top logits for a recipe's whole run; train with `distillation.precomputed=OUT`.

    Disk: 4 x top-k + 4 bytes a position (260 at 64): 34 MB a step of 256 rows of 512 tokens, 5 MB with
    `distillation.positions=masked`. The size is printed before anything is written. Safe to kill.

    One process uses one GPU; start it under torchrun for several, they share the work. Each holds a whole
    teacher: `distillation.placement` is ignored.

    Example: `sparse-pretrain teacher-logits bert-base-85 data/logits distillation.positions=masked --top-k 32`
    """
    from sparse_pretrain.config.recipe import TrainRecipe
    from sparse_pretrain.training.teacher_logits import write_teacher_logits
    from sparse_pretrain.training.world import rank_from_environment

    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    facts = write_teacher_logits(settings, out, top_k, Console(stderr=as_json))
    if as_json and rank_from_environment()[0] == 0:
        print_json(facts)


for part in (cli_local, cli_slurm, cli_watch, cli_doctor):
    part.register(launch_app)


@app.command()
def release(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="a checkpoint, or a run folder (its newest checkpoint); without OUT a model folder"
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates the annotation
        typer.Argument(help="folder to write; leave it out to --push a release or fine-tuned model as it is"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing folder")] = False,
    push: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="upload it to this repository of the hub")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="let everybody see the repository")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="commit over an earlier model of ours in the repository")
    ] = False,
    license_id: Annotated[
        str, typer.Option("--license", help="of the weights, as the hub names it, such as apache-2.0")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what --push would upload; no token, no network")
    ] = False,
) -> None:
    """Write a Hugging Face folder: weights with exact zeros, masks, tokenizer, model card; upload it with `--push`.

    The repository is private unless you say `--public`. The token comes from `HF_TOKEN` or `hf auth login`, never from
    an argument. Everything arrives in one commit; what a broken connection has sent is not sent again.

    Try: `sparse-pretrain release runs/bert-base-85 runs/bert-base-85/release --push me/bert-base-85 --dry-run`

    Or: `sparse-pretrain release runs/sst2 --push me/bert-base-85-sst2 --license apache-2.0`
    """
    given = {"--public": public, "--replace": replace, "--dry-run": dry_run}
    if not push and any(given.values()):
        raise UserError(f"{next(name for name in given if given[name])}: belongs to --push OWNER/NAME")
    if push:
        from sparse_pretrain.checkpoint.hub import PushSettings, publish

        settings = PushSettings(push, public, replace, license_id or None)
        publish(checkpoint, out, settings, Console(), overwrite, dry_run)
        return
    if out is None:
        raise UserError(f"{checkpoint}: give a folder to write the release to, or --push OWNER/NAME")
    from sparse_pretrain.checkpoint.card import UNKNOWN_LICENSE
    from sparse_pretrain.checkpoint.layout import resolve_checkpoint
    from sparse_pretrain.checkpoint.release import release as write_release
    from sparse_pretrain.checkpoint.store import read_checkpoint

    contents = read_checkpoint(resolve_checkpoint(checkpoint))
    write_release(contents, out, Console(), overwrite, license_id=license_id or UNKNOWN_LICENSE)


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(help="a checkpoint, run folder, release, or Hugging Face folder or name")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show sparsity per layer, the mask check, and where a model came from.

    Exit code 1 when a weight outside its mask is not zero, or a value is not a number.
    """
    from sparse_pretrain.checkpoint.inspect import inspect as inspect_model
    from sparse_pretrain.checkpoint.inspect import render

    report = inspect_model(path)
    print_json(report) if as_json else render(report, Console())
    raise typer.Exit(0 if report["check"]["ok"] else 1)


cli_finetune.register(app)
cli_plan.register(app)


@app.command()
def demo(
    full: Annotated[
        bool, typer.Option("--full", help="the longer version: more steps, all labelled examples")
    ] = False,
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/demo"),
) -> None:
    """Run the whole story, small, on real text: dump and books to fine-tuned sparse models, a table, pictures."""
    from sparse_pretrain.demo.story import run_demo

    raise typer.Exit(run_demo(output, full, Console()))


@app.command()
def study(
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/study"),
    steps: Annotated[int, typer.Option(help="optimizer steps of every run", min=25)] = 100,
    seeds: Annotated[int, typer.Option(help="runs of every entry", min=1)] = 2,
    workers: Annotated[int, typer.Option(help="runs at the same time; 0: one per core", min=0)] = 0,
) -> None:
    """Compare sparsities, patterns, and pruning with and without a teacher on the demo's text: one table.

    Held-out masked-language loss after equal steps. 34 runs a seed, 68 by default: one to two hours on two cores.
    Downloads texts and encoder like `demo`, once. Interrupt it at any time: the same command goes on.
    """
    from sparse_pretrain.study.run import run_study

    raise typer.Exit(run_study(output, steps, seeds, workers or os.cpu_count() or 1, Console()))


@app.command()
def gap(
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/gap"),
    steps: Annotated[
        str, typer.Option(help="pruning steps of 2,048 tokens, a sparse model for each number")
    ] = "220,880",
    seeds: Annotated[str, typer.Option(help="seeds of every fine-tuning")] = "1,2,3",
    workers: Annotated[int, typer.Option(help="fine-tunings at a time; 0: one per GPU, or core", min=0)] = 0,
) -> None:
    """Compare a sparse model with its dense one on the demo's labelled tasks, by tokens of pruning: one table.

    Fine-tuned with and without a teacher, several seeds. Two hours on two cores by default. Downloads texts and
    encoder like `demo`, once. Interrupt it at any time: the same command goes on, and --steps can name more.
    """
    from launcher.environment import find_machine
    from sparse_pretrain.study.gap import UPDATES, run_gap

    counts = whole_numbers(steps, "--steps", UPDATES)
    finetunings = whole_numbers(seeds, "--seeds")
    at_a_time = workers or len(find_machine().gpus) or os.cpu_count() or 1
    raise typer.Exit(run_gap(output, counts, finetunings, at_a_time, Console()))


def version_callback(value: bool) -> None:
    """Print the version and leave."""
    if value:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; a mistake or failure is one line on stderr and exit code 2 or 1."""
    try:
        app()
    except UserError as error:
        # Every rank of a run finds the same mistake; the first of each machine says it, for what differs
        # between ranks at this point is what their machines see.
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except FailedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
