"""ONNX and OpenVINO: the task head's answers are torch's, at any batch and length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
)
from typer.testing import CliRunner

from sparse_pretrain.cli import app
from sparse_pretrain.errors import UserError
from sparse_pretrain.export import load_model
from sparse_pretrain.export.check import CheckError, compare, must_agree
from sparse_pretrain.export.inputs import InputLayout, batches, full_batch, input_layout, padded, random_rows
from sparse_pretrain.export.onnx import export_onnx
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE, write_onnx
from sparse_pretrain.export.openvino import (
    EXACT,
    SPARSE_RATE,
    XML_FILE,
    compile_settings,
    load_openvino,
    write_ir,
)
from sparse_pretrain.export.runners import onnx_runner, openvino_runner, torch_runner
from sparse_pretrain.files import read_json
from sparse_pretrain.finetune.task_model import usable_positions
from sparse_pretrain.models.prunable import prunable_weights
from tests.finetune.models import dense_folder
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_config

QUIET = Console(quiet=True)


def test_onnx_answers_like_torch_at_any_batch_and_length(classifier: Path, onnx_folder: Path) -> None:
    model = load_model(classifier)
    layout = input_layout(model)
    ours, theirs = torch_runner(model, layout.names), onnx_runner(onnx_folder / ONNX_FILE, 1)
    for rows, length in ((1, 1), (1, 64), (3, 2), (17, 33)):
        batch = full_batch(layout, rows, length, 65)
        assert theirs(batch)[0].shape == (rows, 3)
        assert compare([ours(batch)], [theirs(batch)]).max_difference < 1e-5


def test_the_check_of_an_export_is_written_beside_it(onnx_folder: Path) -> None:
    facts = read_json(onnx_folder / "export.json")
    assert facts["model"] == "BertForSequenceClassification"
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    fp32, int8 = facts["files"][ONNX_FILE], facts["files"][INT8_FILE]
    assert (fp32["inputs"], fp32["same_answer"]) == (100, 1.0)
    assert fp32["max_difference"] < 1e-4 * fp32["largest_output"]
    assert fp32["max_difference"] < int8["max_difference"] < 0.3 * int8["largest_output"]
    assert {path.name for path in onnx_folder.iterdir()} >= {"config.json", "tokenizer.json"}
    assert not {path.name for path in onnx_folder.iterdir()} & {"model.safetensors", "masks.safetensors"}


def test_zeros_stay_zeros_in_int8(onnx_folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(onnx_folder / INT8_FILE).graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    matrices = [array for array in arrays if array.dtype == np.int8 and array.ndim == 2 and 37 in array.shape]
    assert len(matrices) == 4
    assert all(np.mean(matrix == 0) >= 0.849 for matrix in matrices)
    points = [array for array in arrays if array.dtype == np.int8 and array.ndim < 2]
    assert all(not point.any() for point in points)


def test_openvino_answers_like_torch_in_both_precisions(
    classifier: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    model = load_model(classifier)
    layout = input_layout(model)
    batch = full_batch(layout, 5, 33, 65)
    expected = torch_runner(model, layout.names)(batch)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        write_ir(onnx_folder / ONNX_FILE, tmp_path / f"{precision}.xml", precision)  # type: ignore[arg-type]
        run = openvino_runner(tmp_path / f"{precision}.xml", {SPARSE_RATE: 0.8, **EXACT}, 1)
        assert compare([expected], [run(batch)]).max_difference < tolerance
    sizes = [(tmp_path / f"{precision}.bin").stat().st_size for precision in ("fp32", "fp16")]
    assert sizes[1] < 0.6 * sizes[0]


def test_the_command_writes_openvino_with_its_compile_setting_and_both_outputs_of_question_answering(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(tiny_config("distilbert")).eval()
    for weight in prunable_weights(model).values():
        weight.data[:, :28] = 0.0
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "sentences.txt").write_text("ba de fi\n\ngo lu ka me\n", encoding="utf-8")
    arguments = [str(tmp_path / "model"), str(tmp_path / "out"), "--texts", str(tmp_path / "sentences.txt")]
    done = CliRunner().invoke(app, ["export", "openvino", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["checked_with"], facts["files"][XML_FILE]["inputs"]) == ("sentences", 2)
    assert facts["inputs"] == ["input_ids", "attention_mask"]
    assert facts["compile_settings"] == {SPARSE_RATE: pytest.approx(facts["sparsity"] - 0.05, abs=0.01)}

    layout = input_layout(model)
    run = load_openvino(tmp_path / "out", threads=1, **EXACT)
    for batch in batches(random_rows(model.config, 7, layout.positions), layout, 0, 3):
        found = run(batch)
        assert len(found) == 2
        assert compare([torch_runner(model, layout.names)(batch)], [found]).max_difference < 1e-3


class Branching(BertForSequenceClassification):
    """What it computes depends on values, so no graph can hold it."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **_: Any) -> Any:
        found = super().forward(input_ids, attention_mask)
        if float(found.logits.sum()) < 0:
            found.logits = -found.logits
        return found


def test_a_model_that_no_graph_can_hold_is_one_line(tmp_path: Path) -> None:
    model = Branching(tiny_config(num_hidden_layers=1, type_vocab_size=1)).eval()
    with pytest.raises(
        UserError, match=r"^Branching: torch cannot write it as ONNX, which .*data-dep"
    ) as caught:
        write_onnx(model, input_layout(model), tmp_path / ONNX_FILE)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_longest_input_is_what_the_positions_hold() -> None:
    sizes = {"max_position_embeddings": 66, "pad_token_id": 1}
    expected = {"bert": 66, "roberta": 64, "camembert": 64, "mpnet": 64}
    for family, longest in expected.items():
        assert usable_positions(AutoConfig.for_model(family, **sizes)) == longest
    assert usable_positions(AutoConfig.for_model("xlnet")) == 512  # relative: without end


def test_sparse_weights_are_asked_for_only_where_they_pay() -> None:
    assert compile_settings(0.9, None) == {SPARSE_RATE: 0.85}
    assert compile_settings(0.5, None) == {}
    assert compile_settings(0.0, 0.3) == {SPARSE_RATE: 0.3}


def test_inputs_have_padding_segments_and_choices() -> None:
    batch = padded(
        [[5, 6, 7, 8], [9, 10]], InputLayout(("input_ids", "attention_mask", "token_type_ids"), 0, 64), 0
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    choices = padded([[5, 6]], InputLayout(("input_ids", "attention_mask"), 3, 64), 0)["input_ids"]
    assert choices.shape == (1, 3, 2)
    assert len({row.tobytes() for row in choices[0]}) == 3


def test_a_different_answer_is_no_export() -> None:
    good = np.array([[1.0, 2.0], [4.0, 3.0]], dtype=np.float32)
    agreement = compare([[good]], [[good + np.float32(1e-3)]])
    must_agree(agreement, 1e-3, "model.onnx")
    with pytest.raises(
        CheckError, match=r"model.onnx: differs from torch by up to 0.001 on 2 inputs; .* x 4; nothing"
    ):
        must_agree(agreement, 1e-4, "model.onnx", "; nothing was written")
    with pytest.raises(CheckError, match="inf"):
        must_agree(compare([[good]], [[good * np.float32("nan")]]), 1e-4, "model.onnx")
    with pytest.raises(CheckError, match="shapes"):
        compare([[good]], [[good[:, :1]]])
    assert compare([[good]], [[good[:, ::-1]]]).same_answer == 0.0


def test_mistakes_are_one_line_and_leave_nothing(classifier: Path, tmp_path: Path) -> None:
    config = dense_folder(tmp_path / "bare") / "config.json"
    config.write_text(
        config.read_text().replace("BertModel", "BertForSequenceClassification"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"2 weights of BertForSequenceClassification are missing"):
        export_onnx(tmp_path / "bare", tmp_path / "out", QUIET)
    config.write_text(
        config.read_text().replace("BertForSequenceClassification", "Nothing"), encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"names 'Nothing'"):
        export_onnx(tmp_path / "bare", tmp_path / "out", QUIET)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no sentence"):
        export_onnx(classifier, tmp_path / "out", QUIET, texts=tmp_path / "empty.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"bare", "empty.txt"}


def test_a_class_by_name_is_the_class_that_is_loaded(classifier: Path) -> None:
    assert isinstance(
        load_model(classifier), type(AutoModelForSequenceClassification.from_pretrained(classifier))
    )
