"""What the export tests share: tracing a model takes seconds, so it is done once."""

from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.export.onnx import export_onnx
from tests.export.models import classifier_folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse classifier's folder."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    classifier_folder(folder)
    return folder


@pytest.fixture(scope="session")
def onnx_folder(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as ONNX, fp32 and int8."""
    folder = tmp_path_factory.mktemp("onnx") / "onnx"
    export_onnx(classifier, folder, Console(quiet=True), int8=True)
    return folder
