"""Exported graphs found in folders, with what their `export.json` says of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparse_pretrain.errors import UserError
from sparse_pretrain.export.onnx_graph import INT8_FILE, ONNX_FILE
from sparse_pretrain.export.openvino import EXACT, XML_FILE, load_openvino
from sparse_pretrain.export.reference import STATIC, TRAINED
from sparse_pretrain.export.runners import Run, onnx_runner
from sparse_pretrain.export.target import EXPORT_FILE
from sparse_pretrain.files import read_json


@dataclass(frozen=True)
class Candidate:
    """A file to measure.

    Attributes:
        file: shown and stored.
        open: starts its engine, at the precision that the engine chooses.
        open_exact: starts it in fp32 between the int8 layers.
        model: the class that it was exported from; None when its folder does not say.
        is_rounded: it answers as torch does when it rounds by trained scales.
        tolerance: how far it may be from torch, as a share of the largest output; None: anything.
    """

    file: str
    open: Callable[[], Run]
    open_exact: Callable[[], Run]
    model: str | None
    is_rounded: bool
    tolerance: float | None


def candidates_in(folder: Path) -> list[Candidate]:
    """Return the graphs of an export folder.

    Raises:
        UserError: there are none.
    """
    folder = folder.expanduser()
    threads = torch.get_num_threads()
    found = [name for name in (ONNX_FILE, INT8_FILE, XML_FILE) if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder}: no exported graph here; `sparse-pretrain export onnx` and `export openvino` write them"
        )
    facts = read_json(folder / EXPORT_FILE) if (folder / EXPORT_FILE).is_file() else {}
    return [candidate(folder, name, facts, threads) for name in found]


def candidate(folder: Path, name: str, facts: dict[str, Any], threads: int) -> Candidate:
    """Return one file of a folder whose `export.json` has these facts."""
    if name == XML_FILE:
        open_file: Callable[..., Run] = partial(load_openvino, folder, threads)
        open_exact = partial(load_openvino, folder, threads, **EXACT)
    else:
        open_file = open_exact = partial(onnx_runner, folder / name, threads)
    own = facts.get("files", {}).get(name, {})
    scales = own.get("int8")
    return Candidate(
        file=str(folder / name),
        open=open_file,
        open_exact=open_exact,
        model=facts.get("model"),
        is_rounded=scales == TRAINED,
        # The torch model with scales that were found on sentences is not at hand.
        tolerance=None if scales == STATIC else own.get("tolerance"),
    )


def refuse_another_model(found: Candidate, model: str, source: str | Path) -> None:
    """Refuse a file that was exported from another class of model: it has other inputs and outputs.

    Raises:
        UserError: naming both classes.
    """
    if found.model not in (None, model):
        raise UserError(f"{found.file}: was exported from a {found.model}; {source} is a {model}")
