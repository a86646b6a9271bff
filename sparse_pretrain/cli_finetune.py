"""The commands `finetune` and `evaluate`. Libraries are imported inside: `--help` must not wait for torch."""

from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, OverridesArgument, RecipeArgument, print_json
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(finetune)
    app.command()(evaluate)


def finetune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep", help="every combination of the recipe's `sweep` section; goes on where it was"
        ),
    ] = False,
    parallel: Annotated[
        int,
        typer.Option(
            help="runs of `seeds` or --sweep at a time, each in a process with a GPU of its own", min=1
        ),
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a released model on a task, its zeros locked; with a teacher, several seeds, or a sweep.

    One process is one rank, with one GPU: alone, under torchrun, under srun, or started by `launch local`.

    Example: `sparse-pretrain finetune finetune-sst2 model=runs/bert-base-85/release output=runs/sst2`

    Three runs and their mean and deviation, learning from a dense fine-tuned model:

    Example: `sparse-pretrain finetune finetune-sst2 seeds=[1,2,3] distillation.teacher=runs/sst2-dense`
    """
    from sparse_pretrain.finetune.campaign import campaign
    from sparse_pretrain.finetune.ranks import leave_ranks
    from sparse_pretrain.finetune.recipe import FinetuneRecipe
    from sparse_pretrain.finetune.train import finetune as run_finetuning
    from sparse_pretrain.training.world import rank_from_environment

    settings = load_recipe(recipe, overrides or [], FinetuneRecipe)
    console = Console(stderr=as_json)
    result: dict[str, Any]
    if sweep or settings.seeds:
        result = campaign(settings, sweep, console, parallel)
    elif parallel > 1:
        raise UserError(
            f"--parallel {parallel}: belongs to several runs; set seeds, such as seeds=[1,2,3], or --sweep"
        )
    else:
        result = run_finetuning(settings, console).to_json()
    leave_ranks()
    if as_json and rank_from_environment()[0] == 0:
        print_json(result)


def evaluate(
    model: Annotated[str, typer.Argument(help="a fine-tuning run, its model folder, or a hub name")],
    overrides: OverridesArgument = None,
    task: Annotated[
        Optional[str],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="a fine-tuning recipe; default: the one the model was fine-tuned with"),
    ] = None,
    split: Annotated[str, typer.Option(help="validation, test, or train")] = "validation",
) -> None:
    """Measure a fine-tuned model on a task; prints JSON."""
    from sparse_pretrain.finetune.evaluate import evaluate as measure

    print_json(measure(model, task, split, overrides=tuple(overrides or [])))
