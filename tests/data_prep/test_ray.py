"""Preparation on a Ray cluster of this machine."""

from pathlib import Path

import pytest
from rich.console import Console

from data_prep.engine_ray import ray_engine
from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import FailedError, UserError
from tests.data_prep.corpus import files


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_says_what_is_undone(
    raw: Path, tokenizers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.parts.unit_size", lambda *_: 8000)
    monkeypatch.chdir(raw)

    def recipe(output: str) -> PrepareRecipe:
        changes = [
            "sources.dump.path=dump.xml",
            "sources.books.path=books",
            f"tokenizer={tokenizers / 'bert'}",
        ]
        return load_recipe("data-tiny", [*changes, f"output={tmp_path / output}"], PrepareRecipe)

    prepare(recipe("here"), Console(quiet=True))
    with ray_engine("local") as engine:
        # A task that cannot write: a file stands where its folder should be.
        blocked = recipe("ray")
        blocked.work_folder.write_text("")
        with pytest.raises((FailedError, OSError)):
            prepare(blocked, Console(quiet=True), engine)
        blocked.work_folder.unlink()
        prepare(blocked, Console(quiet=True), engine)
    assert files(tmp_path / "ray") == files(tmp_path / "here")


def test_no_cluster_or_no_ray_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--ray"), ray_engine("127.0.0.1:1"):
        pass
