"""The ONNX files themselves: a traced model, and onnxruntime's int8 of it without training."""

import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparse_pretrain.checkpoint.folder import one_line
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.inputs import InputLayout, padded
from sparse_pretrain.export.runners import OutputsOnly, output_names

ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
# The protobuf library stops at 2 GB; from here on the weights lie in a file of their own.
LARGEST_SINGLE_FILE = 1_900_000_000
EXAMPLE_LENGTH = 16


def write_onnx(model: PreTrainedModel, layout: InputLayout, file: Path) -> None:
    """Trace a model by torch.export and write it with free batch and length (and choices).

    Raises:
        UserError: torch cannot express the model in ONNX.
    """
    # Two rows and sixteen tokens: a size of 1 would be taken for a constant.
    length = min(EXAMPLE_LENGTH, layout.positions)
    example = padded([[1] * length, [1] * (length - 1)], layout, 0)
    axes = {0: "batch", 1: "choices", 2: "length"} if layout.choices else {0: "batch", 1: "length"}
    stored = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored)
    try:
        with quiet_libraries(), torch.no_grad(), redirect_stdout(io.StringIO()):
            torch.onnx.export(
                OutputsOnly(model, layout.names),
                tuple(torch.from_numpy(example[name]) for name in layout.names),
                file,
                dynamo=True,
                verbose=False,
                input_names=list(layout.names),
                output_names=output_names(model, example),
                dynamic_shapes=((axes,) * len(layout.names),),
                external_data=size > LARGEST_SINGLE_FILE,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(
            f"{type(model).__name__}: torch cannot write it as ONNX, which OpenVINO is made of too ({reason})"
        ) from None
    tidy(file)


def tidy(file: Path) -> None:
    """Mend a traced file: without stack traces of the exporting machine (a megabyte), with zero points of their own."""
    import onnx

    # Weights in a file of their own stay there, untouched.
    model = onnx.load(file, load_external_data=False)
    for node in model.graph.node:
        del node.metadata_props[:]
    own_zero_points(model.graph)
    onnx.save(model, file)


def own_zero_points(graph: Any) -> None:
    """Give every DequantizeLinear a zero point of its own, in place; the tracer makes one of equal ones.

    onnxruntime makes uint8 of int8 weights where these would overflow (`runners.onnx_runner`), one after the other, and
    stops at a zero point that it has turned before.
    """
    numbers = {tensor.name: tensor for tensor in graph.initializer}
    taken = set()
    for node in graph.node:
        # The zero point is the third input, and may be left out.
        if node.op_type != "DequantizeLinear" or not numbers.keys() & set(node.input[2:]):
            continue
        shared = node.input[2]
        if shared in taken:
            own = graph.initializer.add()
            own.CopyFrom(numbers[shared])
            own.name = f"{node.output[0]}_zero_point"
            node.input[2] = own.name
        taken.add(shared)


def write_int8(source: Path, file: Path) -> None:
    """Quantise an ONNX file: int8 weights (symmetric: zeros stay zeros), activations at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet_libraries(), tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        prepared = Path(scratch) / ONNX_FILE
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        # The quantiser turns Gemm into MatMul under the old names of intermediate results; with their old shapes
        # still on record its shape inference stops ("existing shape differ").
        graph = onnx.load(prepared)
        del graph.graph.value_info[:]
        onnx.save(graph, prepared, save_as_external_data=source.with_name(f"{source.name}.data").exists())
        quantize_dynamic(
            prepared,
            file,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"WeightSymmetric": True},
        )
