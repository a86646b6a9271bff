"""`launch local`. Thin: parses, calls one function, and prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer
import yaml

from sparse_pretrain.cli_options import AllowChangeOption, OverridesArgument
from sparse_pretrain.errors import UserError


def register(launch_app: typer.Typer) -> None:
    """Add the command to `sparse-pretrain launch`."""
    launch_app.command("local")(local_command)


def local_command(
    recipe: Annotated[
        str, typer.Argument(help="a YAML file, or the name of a shipped recipe; or a pipeline's file")
    ],
    overrides: OverridesArgument = None,
    nproc: Annotated[
        int, typer.Option(help="ranks on this machine; 0: one per GPU, or one when there is none", min=0)
    ] = 0,
    allow_change: AllowChangeOption = False,
    bind: Annotated[
        bool,
        typer.Option(
            "--bind/--no-bind",
            help="give each rank cores of its own, by NUMA node and near its GPU; "
            "not where OMP_PROC_BIND or OMP_PLACES is set or ranks outnumber cores",
        ),
    ] = True,
    redo: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="of a pipeline: do this stage anew although it is done; repeatable"),
    ] = None,
    sweep: Annotated[
        bool,
        typer.Option("--sweep", help="of a fine-tuning recipe: every combination of its `sweep` section"),
    ] = False,
) -> None:
    """Start `train`, or `finetune` for a recipe with a `task`, on several ranks of this machine.

    A file with `stages` is a pipeline: its stages run here one after the other; what is done is not done again.

    Example: `sparse-pretrain launch local bert-base-85 --nproc 8 engine.stage=1`

    Example: `sparse-pretrain launch local finetune-sst2 --nproc 4 model=runs/bert-base-85/release`
    """
    from launcher.environment import find_machine
    from launcher.local import launch_local
    from launcher.pipeline.spec import is_pipeline
    from sparse_pretrain.checkpoint.fence import refuse_second_writer
    from sparse_pretrain.checkpoint.layout import CHECKPOINTS
    from sparse_pretrain.config.load import load_recipe
    from sparse_pretrain.config.recipe import TrainRecipe

    ranks = nproc or max(1, len(find_machine().gpus))
    if is_pipeline(recipe):
        raise typer.Exit(launch_pipeline_here(recipe, overrides or [], ranks, bind, redo or []))
    if is_finetuning(recipe):
        if allow_change:
            raise UserError(
                "--allow-change: belongs to training; a fine-tuning run of another recipe begins anew"
            )
        raise typer.Exit(launch_finetuning(recipe, overrides or [], ranks, bind, sweep))
    if sweep:
        raise UserError(f"--sweep: {recipe} is no fine-tuning recipe")
    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    # Before ranks make log files in a folder that another run writes to.
    refuse_second_writer(settings.output / CHECKPOINTS)
    command = ["train", recipe, *(overrides or []), *(["--allow-change"] if allow_change else [])]
    raise typer.Exit(launch_local(command, ranks, settings.output, bind=bind))


def is_finetuning(recipe: str) -> bool:
    """Say whether a recipe is one of `finetune`: it has a task."""
    from sparse_pretrain.config.load import find_recipe

    try:
        values = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return False
    return isinstance(values, dict) and "task" in values


def launch_finetuning(recipe: str, overrides: Sequence[str], ranks: int, bind: bool, sweep: bool) -> int:
    """Run `finetune` on the ranks of this machine; return the exit code."""
    from launcher.local import launch_local
    from sparse_pretrain.config.load import load_recipe
    from sparse_pretrain.finetune.recipe import FinetuneRecipe

    settings = load_recipe(recipe, overrides, FinetuneRecipe)
    command = ["finetune", recipe, *overrides, *(["--sweep"] if sweep else [])]
    return launch_local(command, ranks, settings.output, bind=bind)


def launch_pipeline_here(
    file: str, overrides: Sequence[str], ranks: int, bind: bool, redo: Sequence[str]
) -> int:
    """Run a pipeline's stages on this machine; return the exit code."""
    from launcher.pipeline.here import run_pipeline_here
    from launcher.pipeline.spec import load_pipeline
    from launcher.pipeline.stages import stage_jobs
    from launcher.site import Site

    pipeline = load_pipeline(file, overrides)
    # What a cluster's site says does not hold here.
    stages = stage_jobs(pipeline, None, Path.cwd(), lambda _: (Site(), None))
    return run_pipeline_here(
        file, stages, pipeline.output.absolute(), ranks, bind, redo, lambda line: typer.echo(line, err=True)
    )
