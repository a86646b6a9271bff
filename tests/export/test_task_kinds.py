"""Every kind of task, from int8 in the loop to the exported files: outputs, metric and zeros are those of torch."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModel

from sparse_pretrain.export.onnx import export_onnx
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE
from sparse_pretrain.export.openvino import XML_FILE, export_openvino, write_ir
from sparse_pretrain.export.target import EXPORT_FILE
from sparse_pretrain.export.task_metric import check_metric
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.finetune.result import FinetuneResult
from sparse_pretrain.finetune.train import finetune
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.finetune.models import recipe, smallest_pruned, write_sentences
from tests.finetune.rows import TASKS, write_rows
from tests.tiny_models import roberta_config, roberta_tokenizer, save_sparse, tiny_config

QUIET = Console(quiet=True)
SENTENCES = "sentences"
# Outputs of int8 files, as a share of the largest: a value between two levels is rounded up here and down there.
INT8_WITHIN = 0.03
METRIC_WITHIN = 0.02
CASES = {
    "distilbert": (SENTENCES, "accuracy"),
    "distilbert-span": ("span", "f1"),
    "bert-choice": ("choice", "accuracy"),
    "roberta-tokens": ("tokens", "f1"),
}


@dataclass(frozen=True)
class Deployed:
    """A sparse model, fine-tuned in int8 and exported both ways."""

    run: Path
    metric: str
    result: FinetuneResult

    @property
    def exports(self) -> list[Path]:
        return [self.run / "onnx", self.run / "openvino"]


def sparse_encoder(family: str, folder: Path) -> Path:
    """A sparse encoder of one layer; RoBERTa with its own kind of tokenizer."""
    torch.manual_seed(0)
    tokenizer = roberta_tokenizer() if family == "roberta" else None
    layers = {"n_layers" if family == "distilbert" else "num_hidden_layers": 1}
    config = tiny_config(family, **layers) if tokenizer is None else roberta_config(tokenizer, **layers)
    model = AutoModel.from_config(config)
    weights = {name: weight.detach() for name, weight in prunable_weights(model).items()}
    return save_sparse(model, smallest_pruned(weights), folder, tokenizer)


def task_settings(task: str, folder: Path) -> dict[str, Any]:
    """The settings of a tiny task whose data are written into a folder: 100 rows to measure."""
    if task == SENTENCES:
        train = write_sentences(folder / "train.csv", 240)
        return {"train": str(train), "validation": str(write_sentences(folder / "validation.csv", 100, 1))}
    make, settings = TASKS[task]
    generator = random.Random(0)
    files = {
        split: write_rows(folder / f"{split}.jsonl", [make(generator) for _ in range(rows)])
        for split, rows in (("train", 400), ("validation", 100))
    }
    return {**settings, **files, "labels": []}


# Tracing takes about seven seconds a case.
@pytest.fixture(scope="module", params=CASES)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    task, metric = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    sparse_encoder(request.param.split("-")[0], folder / "sparse")
    sections = {"quantization": {"momentum": 0.1, "calibration_steps": 4}}
    settings = recipe(
        folder,
        folder / "run",
        task=task_settings(task, folder),
        sections=sections,
        epochs=6 if task == SENTENCES else 3,
        max_length=32,
    )
    result = finetune(settings, QUIET)
    found = Deployed(folder / "run", metric, result)
    export_onnx(found.run, found.exports[0], QUIET, int8=True)
    if task == "span":
        export_openvino(found.run, found.exports[1], QUIET, "int8")
    else:
        convert_openvino(*found.exports)
    return found


def convert_openvino(onnx_folder: Path, out: Path) -> None:
    """What `export openvino` makes of a model, from the graph that is there: tracing it once more takes seconds."""
    out.mkdir()
    write_ir(onnx_folder / INT8_FILE, out / XML_FILE, "int8")
    facts = read_json(onnx_folder / EXPORT_FILE)
    write_json(out / EXPORT_FILE, facts | {"files": {XML_FILE: facts["files"][INT8_FILE]}})


@pytest.mark.slow
def test_the_files_answer_as_torch_does_and_are_as_good_at_the_task(deployed: Deployed) -> None:
    facts = check_metric(deployed.run, deployed.exports, QUIET, within=METRIC_WITHIN)
    assert (facts["metric"], facts["int8"]) == (deployed.metric, True)
    assert facts["results"]["torch"]["score"] == deployed.result.score > 0.75
    files = {Path(name).name: result for name, result in facts["results"].items()}
    for name in (INT8_FILE, XML_FILE):
        agreement = files[name]["agreement"]
        assert agreement["inputs"] == 100
        assert agreement["max_difference"] <= INT8_WITHIN * agreement["largest_output"]
        assert abs(files[name]["worse_by"]) <= METRIC_WITHIN
    plain = files[ONNX_FILE]["agreement"]
    assert plain["max_difference"] < 1e-4 * plain["largest_output"]
    # Rounding does something, and the int8 file is nearer to rounding torch than fp32 is.
    written = read_json(deployed.exports[0] / EXPORT_FILE)["files"][INT8_FILE]
    assert written["int8"] == "trained"
    assert written["torch_int8_against_fp32"]["mean_difference"] > 10 * written["mean_difference"]


@pytest.mark.slow
def test_zeros_stay_zeros_through_training_and_in_the_int8_file(deployed: Deployed) -> None:
    onnx = pytest.importorskip("onnx")
    assert (deployed.result.masks, deployed.result.nonzero_outside_masks) == ("file", 0)
    graph = onnx.load(deployed.exports[0] / INT8_FILE).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    masks = MaskSet.load(deployed.result.model_folder / MASK_FILE)
    assert len(masks) >= 6
    for name, mask in masks.items():
        levels = next(
            array
            for key, array in stored.items()
            if name.removesuffix(".weight") in key and array.dtype == np.int8 and array.ndim == 2
        )
        assert not levels.T[~mask.numpy()].any(), name
        assert levels.any(), name
