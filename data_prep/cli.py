"""The `tokenizer` commands; registered by `sparse_pretrain.cli`."""

from typing import Annotated

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, OverridesArgument, print_json
from sparse_pretrain.config.load import load_recipe

tokenizer_app = typer.Typer(no_args_is_help=True, help="A tokenizer of your own text.")


@tokenizer_app.callback()
def _tokenizer() -> None:
    """Keep `train` a command of its own while it is the only one."""


@tokenizer_app.command("train")
def tokenizer_train(
    recipe: Annotated[str, typer.Argument(help="a file; docs/data.md shows one")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Train WordPiece, unigram or BPE on a recipe's sources; the folder loads with `AutoTokenizer`.

    The recipe names `output`, `sources` as in `data prepare`, `algorithm` and `vocabulary_size`.
    """
    from data_prep.train_tokenizer import TokenizerRecipe, train_tokenizer

    result = train_tokenizer(load_recipe(recipe, overrides or [], TokenizerRecipe), Console(stderr=as_json))
    if as_json:
        print_json(result)
