"""Data preparation as array jobs on the cluster: the same bytes as on this machine."""

import dataclasses
import os
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.engine_slurm import SlurmEngine
from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from launcher.lab import Lab
from launcher.prepare_site import slurm_settings
from launcher.site import Site
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import FailedError
from tests.data_prep.corpus import files, write_raw, write_tokenizers


def recipe(place: Path, output: str) -> PrepareRecipe:
    changes = [
        f"sources.dump.path={place / 'raw' / 'dump.xml'}",
        f"sources.books.path={place / 'raw' / 'books'}",
        f"tokenizer={place / 'tokenizers' / 'bert'}",
        f"output={place / output}",
    ]
    return load_recipe("data-tiny", changes, PrepareRecipe)


@pytest.mark.slow
def test_the_same_bytes_on_the_cluster(
    lab: Lab, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.parts.unit_size", lambda *_: 16_000)
    write_raw(tmp_path / "raw")
    write_tokenizers(tmp_path / "tokenizers")
    here = prepare(recipe(tmp_path, "here"), Console(quiet=True))
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    site = Site.model_validate({"time": "5", "environment": {"PYTHONPATH": path}})
    settings = dataclasses.replace(slurm_settings(site), memory_gb=1, poll_seconds=0.5)
    broken = dataclasses.replace(settings, python="/nowhere/python", options={"requeue": ""})
    with pytest.raises(FailedError, match=r"ended with \d+ of \d+ tasks undone; its output: .*slurm_logs"):
        prepare(recipe(tmp_path, "there"), Console(quiet=True), SlurmEngine(broken))
    there = prepare(recipe(tmp_path, "there"), Console(quiet=True), SlurmEngine(settings))
    assert there == here
    assert files(tmp_path / "there") == files(tmp_path / "here")
