"""Inputs that the fine-tuning tests share."""

from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.checkpoint.release import release
from tests.finetune.models import dense_folder, tiny_contents, write_pairs, write_sentences


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse release, a dense encoder, and two labelled files."""
    folder = tmp_path_factory.mktemp("inputs")
    release(
        tiny_contents(folder / "checkpoint-model", next_sentence=True), folder / "sparse", Console(quiet=True)
    )
    dense_folder(folder / "dense")
    write_sentences(folder / "sentences.csv", 240)
    write_pairs(folder / "pairs.tsv", 240)
    return folder
