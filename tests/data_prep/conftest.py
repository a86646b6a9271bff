"""Raw text and tokenizers, made once a session."""

from pathlib import Path

import pytest

from tests.data_prep.corpus import write_raw, write_tokenizers


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dump.xml`, `dump.xml.bz2` and `books/`; do not change it."""
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer folders `bert`, `distilbert` and `roberta`; do not change it."""
    return write_tokenizers(tmp_path_factory.mktemp("tokenizers"))
