"""Products of the largest int8 numbers add up in every engine, on every processor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparse_pretrain.export.onnx_graph import own_zero_points
from sparse_pretrain.export.runners import Run, onnx_runner, openvino_runner

WIDTH = 64
LAYERS = 2
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def graph_of_largest_numbers() -> onnx.GraphProto:
    """Two matrices of 127 on activations of up to 255; both share one zero point, as tracing leaves it."""
    nodes, constants = [], [constant("scale", np.float32(1)), constant("zero", np.int8(0))]
    constants.append(constant("low", np.uint8(0)))
    for number in range(LAYERS):
        constants.append(constant(f"weight-{number}", np.full((WIDTH, 8), 127, np.int8)))
        nodes += [
            helper.make_node(QUANTIZE, ["input", "scale", "low"], [f"levels-{number}"]),
            helper.make_node(DEQUANTIZE, [f"levels-{number}", "scale", "low"], [f"values-{number}"]),
            helper.make_node(DEQUANTIZE, [f"weight-{number}", "scale", "zero"], [f"matrix-{number}"]),
            helper.make_node("MatMul", [f"values-{number}", f"matrix-{number}"], [f"output-{number}"]),
        ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["rows", WIDTH])]
    outputs = [
        helper.make_tensor_value_info(f"output-{number}", TensorProto.FLOAT, ["rows", 8])
        for number in range(LAYERS)
    ]
    return helper.make_graph(nodes, "largest", inputs, outputs, constants)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    graph = graph_of_largest_numbers()
    own_zero_points(graph)
    path = tmp_path / "largest.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "open_file", [lambda path: onnx_runner(path, 1), lambda path: openvino_runner(path, {}, 1)]
)
def test_the_largest_numbers_add_up(file: Path, open_file: Callable[[Path], Run]) -> None:
    """Without VNNI, pairs of products overflow 16 bits: half of the sum is lost unless engines are told."""
    for output in open_file(file)({"input": np.full((4, WIDTH), 255, np.float32)}):
        assert (output == 255 * 127 * WIDTH).all()


def test_no_two_weights_share_a_zero_point() -> None:
    graph = graph_of_largest_numbers()
    own_zero_points(graph)
    used = [node.input[2] for node in graph.node if node.op_type == DEQUANTIZE]
    assert len(set(used)) == len(used)
    assert set(used) <= {tensor.name for tensor in graph.initializer}
