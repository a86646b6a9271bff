"""What both studies begin with: the demo's texts, prepared, and its teacher, released; each once."""

import os
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.data.manifest import MANIFEST_FILE
from sparse_pretrain.demo.assets import cache_folder, fetch
from sparse_pretrain.demo.story import train_and_release


def prepare_teacher(output: Path, console: Console) -> None:
    """Prepare `data` and train and release `teacher` in a study's folder, where they are not there yet.

    Raises:
        UserError: no network at the first run.
        StageFailedError: the teacher's training failed.
    """
    os.environ.setdefault("SPARSE_PRETRAIN_CACHE", str(cache_folder()))
    console.print(Rule("1/3  texts, encoder, teacher"))
    fetch(None, console)
    data = output / "data"
    if not (data / MANIFEST_FILE).is_file():
        prepare(load_recipe("data-demo", [f"output={data}"], PrepareRecipe), console)
    train_and_release("demo-teacher", output / "teacher", [f"data.path={data}"], console)
