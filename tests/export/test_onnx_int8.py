"""Int8 by trained scales: ONNX and OpenVINO store int8, and answer as torch does when it rounds."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.export import load_model
from sparse_pretrain.export.check import CheckError, compare
from sparse_pretrain.export.inputs import full_batch, input_layout
from sparse_pretrain.export.onnx import export_onnx
from sparse_pretrain.export.onnx_graph import INT8_FILE
from sparse_pretrain.export.onnx_int8 import int8_model
from sparse_pretrain.export.openvino import EXACT, XML_FILE, export_openvino, load_openvino, write_ir
from sparse_pretrain.export.runners import Run, onnx_runner, openvino_runner, torch_runner
from sparse_pretrain.export.target import EXPORT_FILE
from sparse_pretrain.export.task_metric import MetricError, check_metric
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.finetune.train import finetune
from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.quantization import load_quantization
from sparse_pretrain.quantization.rounding import integers
from sparse_pretrain.quantization.stored import QUANTIZATION_FILE
from tests.finetune.conftest import folder as folder
from tests.finetune.models import recipe

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse classifier, fine-tuned in int8."""
    output = tmp_path_factory.mktemp("int8") / "run"
    section = {"quantization": {"momentum": 0.1, "calibration_steps": 4}}
    finetune(recipe(folder, output, sections=section, epochs=3), QUIET)
    return output


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """The same as ONNX."""
    export_onnx(trained, trained / "onnx", QUIET, int8=True)
    return trained / "onnx"


def test_int8_onnx_answers_like_torch_rounding_at_any_batch_and_length(trained: Path, exported: Path) -> None:
    facts = read_json(exported / "export.json")["files"][INT8_FILE]
    assert (facts["int8"], facts["inputs"], facts["same_answer"]) == ("trained", 100, 1.0)
    assert facts["max_difference"] < facts["tolerance"] * facts["largest_output"]
    # Rounding does something, and the file is nearer to rounding torch than fp32 is.
    assert facts["torch_int8_against_fp32"]["mean_difference"] > 10 * facts["mean_difference"]
    model = int8_model(trained, None, input_layout(load_model(trained)))
    assert model is not None
    layout = input_layout(model)
    for engine in (onnx_runner(exported / INT8_FILE, 1), openvino(exported / INT8_FILE, trained / "ir.xml")):
        for rows, length in ((1, 1), (1, 50), (7, 33)):
            batch = full_batch(layout, rows, length, 65)
            agreement = compare([torch_runner(model, layout.names)(batch)], [engine(batch)])
            assert agreement.mean_difference < 0.02 * agreement.largest_output


def openvino(graph: Path, file: Path) -> Run:
    write_ir(graph, file, "int8")
    weights = file.with_suffix(".bin").stat().st_size
    assert weights < 0.5 * (graph.parent / "model.onnx").stat().st_size
    return openvino_runner(file, EXACT, 1)


def test_int8_onnx_stores_every_weight_as_int8_and_its_zeros_as_zeros(trained: Path, exported: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported / INT8_FILE).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    model = load_model(trained)
    assert load_quantization(model, trained)
    matrices = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 2}
    weights = prunable_weights(model)
    for name, weight in weights.items():
        stored = next(array for key, array in matrices.items() if name.removesuffix(".weight") in key)
        assert np.array_equal(stored, integers(weight).t().numpy())
    assert all(np.mean(matrix == 0) >= 0.849 for matrix in matrices.values() if 37 in matrix.shape)
    widest = max(array.size for array in arrays.values() if array.dtype == np.float32)
    assert widest <= 64  # biases and layer norms; no matrix is left in fp32
    assert b"site-packages" not in (exported / INT8_FILE).read_bytes()
    kinds = [node.op_type for node in graph.node]
    layers = read_json(trained / "model" / QUANTIZATION_FILE)["layers"]
    assert kinds.count("DequantizeLinear") >= len(layers)
    scales = {float(array) for array in arrays.values() if array.dtype == np.float32 and array.ndim == 0}
    assert {facts["weight_scale"] for facts in layers.values()} <= scales
    assert {facts["input"]["scale"] for facts in layers.values() if facts.get("input")} <= scales


def test_the_task_metric_through_the_files_is_torchs(trained: Path, exported: Path) -> None:
    facts = check_metric(trained, [exported], QUIET, within=0.05)
    names = ["torch", str(exported / "model.onnx"), str(exported / INT8_FILE)]
    assert list(facts["results"]) == names
    assert (facts["examples"], facts["int8"]) == (60, True)
    score = read_json(trained / "metrics.json")["score"]
    assert facts["results"]["torch"]["score"] == score > 0.8
    assert abs(facts["results"][names[2]]["worse_by"]) <= 0.02
    done = CliRunner().invoke(app, ["export", "check", str(trained), str(exported)])
    assert done.exit_code == 0
    assert "weights and activations rounded to int8" in done.stdout
    with pytest.raises(UserError, match="no exported graph here"):
        check_metric(trained, [trained], QUIET)


def test_a_file_that_is_worse_than_allowed_fails(
    trained: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparse_pretrain.export import candidates

    def upside_down(file: Path, threads: int) -> Run:
        run = onnx_runner(file, threads)
        return lambda batch: [-output for output in run(batch)]

    monkeypatch.setattr(candidates, "onnx_runner", upside_down)
    with pytest.raises(
        MetricError, match=r"model.onnx: accuracy 0\.\d+, torch has .*; allowed are 0.01 less"
    ):
        check_metric(trained, [exported], QUIET, within=0.01)


def test_outputs_on_the_tasks_own_inputs_are_compared_too(
    trained: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the logits are the same classes, so the metric says nothing."""
    from sparse_pretrain.export import candidates

    found = check_metric(trained, [exported], QUIET)["results"]
    for name, tolerance in (("model.onnx", 1e-4), (INT8_FILE, 0.05)):
        result = found[str(exported / name)]
        assert (result["tolerance"], result["agreement"]["inputs"]) == (tolerance, 60)
        assert result["agreement"]["max_difference"] <= tolerance * max(
            1.0, result["agreement"]["largest_output"]
        )

    def twice(file: Path, threads: int) -> Run:
        run = onnx_runner(file, threads)
        return lambda batch: [2 * output for output in run(batch)]

    monkeypatch.setattr(candidates, "onnx_runner", twice)
    with pytest.raises(
        CheckError, match=r"model.onnx: differs from torch by .* on 60 inputs; .* of the task"
    ):
        check_metric(trained, [exported], QUIET, within=0.01)


def test_the_export_of_another_kind_of_model_is_one_line_and_exit_code_2(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    other = tmp_path / "onnx"
    shutil.copytree(exported, other)
    write_json(other / EXPORT_FILE, read_json(other / EXPORT_FILE) | {"model": "BertForQuestionAnswering"})
    done = CliRunner().invoke(app, ["export", "check", str(trained), str(other)])
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == (
        f"{other / 'model.onnx'}: was exported from a BertForQuestionAnswering; {trained} is a "
        "BertForSequenceClassification"
    )


def test_openvino_int8_needs_scales_and_finds_them_on_sentences(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not trained in int8, so it has no scales"):
        export_openvino(classifier, tmp_path / "out", QUIET, "int8")
    assert not (tmp_path / "out").exists()
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(["ba de fi go lu", "ka me", "ba ba ka lu go de fi me"] * 12))
    facts = export_openvino(classifier, tmp_path / "out", QUIET, "int8", calibrate=sentences)
    assert (facts["precision"], facts["files"][XML_FILE]["inputs"]) == ("int8", 100)
    model = load_model(classifier)
    layout = input_layout(model)
    static = int8_model(classifier, sentences, layout)
    assert static is not None
    batch = full_batch(layout, 5, 9, 65)
    fp32, rounded = (torch_runner(one, layout.names)(batch) for one in (model, static))
    agreement = compare([fp32], [rounded])
    assert 0 < agreement.mean_difference < 0.2 * agreement.largest_output
    found = load_openvino(tmp_path / "out", 1, **EXACT)(batch)
    assert compare([rounded], [found]).mean_difference < 0.02 * agreement.largest_output
