"""The folder of an exported graph, ONNX or OpenVINO: the checked files, config and tokenizer, `export.json`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from sparse_pretrain.export.loading import load_tokenizer
from sparse_pretrain.export.reference import CHECK_INPUTS, Facts, Reference, reference
from sparse_pretrain.export.target import EXPORT_FILE, copy_companions, staged_folder
from sparse_pretrain.files import write_json
from sparse_pretrain.models.loading import could_be_hub_name


@dataclass(frozen=True)
class GraphJob:
    """What both exports are asked for.

    Attributes:
        source: release, fine-tuned model, bitmask folder, any Hugging Face folder or hub name.
        out: the folder to make.
        console: shows progress.
        texts: a file of sentences to check with; None: random tokens.
        inputs: how many to check with.
        overwrite: replace an earlier export at `out`.
        calibrate: sentences to find int8 scales on, without training.
    """

    source: str | Path
    out: Path
    console: Console
    texts: Path | None = None
    inputs: int = CHECK_INPUTS
    overwrite: bool = False
    calibrate: Path | None = None


def write_graph_folder(job: GraphJob, kind: str, write_files: Callable[[Path, Reference], Facts]) -> Facts:
    """Make the folder of an export; it is complete, or not there.

    Args:
        job: what is wanted.
        kind: `onnx` or `openvino`.
        write_files: writes and checks the graphs in a folder, and returns what `export.json` says of them.

    Raises:
        UserError: no such model, or the disk refused.
        CheckError: a file answers differently from torch.
    """
    with staged_folder(job.out.expanduser(), job.overwrite) as folder:
        torch_side = reference(job.source, job.texts, job.inputs, job.console)
        facts: Facts = {
            "format": kind,
            "source": str(job.source),
            "model": type(torch_side.model).__name__,
            "inputs": list(torch_side.layout.names),
            "checked_with": "sentences" if torch_side.real else "random tokens",
            **write_files(folder, torch_side),
        }
        companions(job.source, torch_side.model, folder)
        write_json(folder / EXPORT_FILE, facts)
    return facts


def companions(source: str | Path, model: PreTrainedModel, folder: Path) -> None:
    """Put config and tokenizer beside an exported graph."""
    path = Path(source).expanduser()
    found = next((place for place in (path, path / "model") if (place / "config.json").is_file()), None)
    if found is not None:
        copy_companions(found, folder)
    elif could_be_hub_name(str(source)):
        model.config.save_pretrained(folder)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
