"""One call for every engine: a batch of numpy arrays in, the model's outputs as numpy arrays out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.inputs import Array, Batch
from sparse_pretrain.processor import overflows_in_int8

Run = Callable[[Batch], list[Array]]
INT8_KERNELS = "LP_TRANSFORMS_MODE"
# Not outputs of a task; a pooler may be missing from what was saved, and be made up on loading.
LEFT_OUT = {"loss", "hidden_states", "attentions", "past_key_values", "cross_attentions", "pooler_output"}


def require(package: str) -> None:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(f"{package} is not usable ({error}): pip install 'sparse-pretrain[export]'") from None


class OutputsOnly(torch.nn.Module):
    """A model whose forward takes its inputs in order and returns the task's outputs as a tuple."""

    def __init__(self, model: PreTrainedModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.train(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of `output_names`."""
        found = self.model(**dict(zip(self.names, inputs, strict=True)), return_dict=True)
        return tuple(value for name, value in found.items() if is_output(name, value))


def is_output(name: str, value: Any) -> bool:
    """Say whether an entry of a model's output is one that is exported."""
    return name not in LEFT_OUT and isinstance(value, Tensor)


def output_names(model: PreTrainedModel, batch: Batch) -> list[str]:
    """Return the names of the task's outputs, by running the model once, on the device where it is."""
    inputs = {name: torch.from_numpy(array).to(model.device) for name, array in batch.items()}
    with torch.no_grad():
        found = model(**inputs, return_dict=True)
    return [name for name, value in found.items() if is_output(name, value)]


def torch_runner(model: PreTrainedModel, names: tuple[str, ...]) -> Run:
    """Return a runner by torch, where the model is; on a CPU on as many threads as torch is set to."""
    wrapped = OutputsOnly(model, names)

    def run(batch: Batch) -> list[Array]:
        inputs = (torch.from_numpy(batch[name]).to(model.device) for name in names)
        with torch.inference_mode():
            return [output.cpu().numpy() for output in wrapped(*inputs)]

    return run


def onnx_runner(file: Path, threads: int) -> Run:
    """Return a runner by onnxruntime on the CPU.

    Raises:
        UserError: onnxruntime is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Where int8 products would overflow, weights become uint8 on loading: other products, which do not.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda batch: [np.asarray(output) for output in session.run(None, batch)]


def openvino_runner(file: Path, settings: dict[str, Any], threads: int) -> Run:
    """Return a runner by OpenVINO on the CPU.

    Args:
        file: `.xml` or `.onnx`.
        settings: of the compiler, such as `CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE`.
        threads: cores used.

    Raises:
        UserError: OpenVINO is not installed.
    """
    require("openvino")
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, **settings}
    if overflows_in_int8():
        # No int8 kernels: it has none that add up right here.
        settings[INT8_KERNELS] = "NO"
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    outputs = len(compiled.outputs)

    def run(batch: Batch) -> list[Array]:
        found = compiled(batch)
        return [np.array(found[number]) for number in range(outputs)]

    return run
