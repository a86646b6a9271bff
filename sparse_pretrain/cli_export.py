"""The `sparse-pretrain export` commands. Thin: every command parses, calls one function, and prints.

Libraries are imported inside the commands: `--help` must not wait for torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, print_json

app = typer.Typer(
    no_args_is_help=True, help="Deployable forms of a sparse model: bitmask file, ONNX, OpenVINO; a report."
)

ModelArgument = Annotated[
    str, typer.Argument(help="a release, fine-tuned model, Hugging Face folder or hub name")
]
OutArgument = Annotated[Path, typer.Argument(help="folder to write")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace an earlier export")]


class Values(StrEnum):
    """In what precision `bitmask` stores the values that are not zero."""

    EXACT = "exact"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


@app.command("bitmask")
def bitmask_command(
    model: ModelArgument,
    out: OutArgument,
    dtype: Annotated[
        Values,
        typer.Option("--dtype", help="of the non-zero weights; int8: a scale for every output row"),
    ] = Values.EXACT,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one bit a prunable weight and the non-zero values: safetensors with a checksum inside.

    Everything but the prunable matrices is stored as it is. `export unpack` and `load_bitmask` give the dense
    weights back, bit by bit; with int8, the quantised ones.

    Try: `sparse-pretrain export bitmask runs/bert-base-85/release runs/bert-base-85/bitmask --dtype fp16`
    """
    from sparse_pretrain.export.bitmask import export_bitmask
    from sparse_pretrain.files import show_bytes

    console = Console(stderr=as_json)
    facts = export_bitmask(model, out, console, dtype.value, overwrite)
    if as_json:
        print_json(facts)
        return
    console.print(
        f"{out}: {show_bytes(facts['bytes'])}, dense {show_bytes(facts['dense_bytes'])} "
        f"({facts['dense_bytes'] / facts['bytes']:.2f} x smaller); prunable matrices "
        f"{show_bytes(facts['prunable_bytes'])}, dense {show_bytes(facts['dense_prunable_bytes'])} "
        f"({facts['dense_prunable_bytes'] / facts['prunable_bytes']:.2f} x smaller)",
        soft_wrap=True,
        highlight=False,
    )


@app.command("unpack")
def unpack_command(
    packed: Annotated[Path, typer.Argument(help="a folder that `export bitmask` wrote, or its file")],
    out: OutArgument,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bitmask folder as a plain Hugging Face folder: dense weights with exact zeros, and the masks.

    Exit code 2 when the file is truncated or corrupt.

    Try: `sparse-pretrain export unpack runs/bert-base-85/bitmask runs/bert-base-85/unpacked`
    """
    from sparse_pretrain.export.bitmask import unpack
    from sparse_pretrain.files import show_bytes

    console = Console(stderr=as_json)
    facts = unpack(packed, out, console, overwrite)
    if as_json:
        print_json(facts)
        return
    console.print(f"{out}: {facts['tensors']} tensors, {show_bytes(facts['bytes'])}", soft_wrap=True)
