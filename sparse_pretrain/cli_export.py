"""The `sparse-pretrain export` commands. Thin: every command parses, calls one function, and prints.

Libraries are imported inside the commands: `--help` must not wait for torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

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


class Others(StrEnum):
    """In what precision `bitmask` stores the tensors that are not prunable matrices."""

    EXACT = "exact"
    BF16 = "bf16"
    FP16 = "fp16"


@app.command("bitmask")
def bitmask_command(
    model: ModelArgument,
    out: OutArgument,
    dtype: Annotated[
        Values,
        typer.Option("--dtype", help="of the non-zero weights; int8: a scale for every output row"),
    ] = Values.EXACT,
    others: Annotated[
        Others, typer.Option("--others", help="of everything else, embeddings above all")
    ] = Others.EXACT,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write one bit a prunable weight and the non-zero values: safetensors with a checksum inside.

    Everything but the prunable matrices is stored as it is, or as `--others` says. `export unpack` and
    `load_bitmask` give the dense weights back, bit by bit unless you asked for less.

    Try: `sparse-pretrain export bitmask runs/bert-base-85/release runs/bert-base-85/bitmask --dtype fp16`
    """
    from sparse_pretrain.export.bitmask import export_bitmask
    from sparse_pretrain.files import show_bytes

    console = Console(stderr=as_json)
    facts = export_bitmask(model, out, console, dtype.value, overwrite, others.value)
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
    packed: Annotated[
        Path, typer.Argument(help="a folder that `export bitmask` or `two-four` wrote, or its file")
    ],
    out: OutArgument,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a bitmask or 2:4 folder as a plain Hugging Face folder: dense weights with exact zeros, and the masks.

    Exit code 2 when the file is truncated or corrupt.

    Try: `sparse-pretrain export unpack runs/bert-base-85/bitmask runs/bert-base-85/unpacked`
    """
    from sparse_pretrain.export.unpack import unpack
    from sparse_pretrain.files import show_bytes

    console = Console(stderr=as_json)
    facts = unpack(packed, out, console, overwrite)
    if as_json:
        print_json(facts)
        return
    console.print(f"{out}: {facts['tensors']} tensors, {show_bytes(facts['bytes'])}", soft_wrap=True)


class Weights(StrEnum):
    """In what precision `openvino` stores weights."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


CalibrateOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates the annotation
    typer.Option(help="sentences of the task to find int8 scales on, one a line (UTF-8)"),
]
TextsOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer evaluates the annotation
    typer.Option(help="sentences to check with, one a line (UTF-8); default: random tokens"),
]
InputsOption = Annotated[int, typer.Option(help="number of inputs to check with", min=1)]


@app.command("onnx")
def onnx_command(
    model: ModelArgument,
    out: OutArgument,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="also write model.int8.onnx: by trained scales, else onnxruntime's dynamic int8"
        ),
    ] = False,
    calibrate: CalibrateOption = None,
    texts: TextsOption = None,
    inputs: InputsOption = 100,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write `model.onnx`, task head included, for any batch and length, and compare it with torch.

    Exit code 1, and nothing is written, when an output differs by more than 1e-4 of the largest.

    A model that was trained in int8 (`finetune` with `quantization:`) gives real int8 with its trained scales, compared
    with torch's rounding by the same scales (5 %). `--calibrate` finds scales on sentences instead, without training.
    Otherwise int8 is dynamic, and its difference only stated.

    Try: `sparse-pretrain export onnx runs/sst2-int8 runs/sst2-int8/onnx --int8 --texts sentences.txt`
    """
    from sparse_pretrain.export.onnx import export_onnx

    console = Console(stderr=as_json)
    facts = export_onnx(model, out, console, int8, texts, inputs, overwrite, calibrate)
    print_json(facts) if as_json else say_files(out, facts, console)


@app.command("openvino")
def openvino_command(
    model: ModelArgument,
    out: OutArgument,
    dtype: Annotated[Weights, typer.Option("--dtype", help="precision of the stored weights")] = Weights.FP16,
    calibrate: CalibrateOption = None,
    sparse_rate: Annotated[
        Optional[float],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(
            help="share of zeros from which OpenVINO leaves a matrix's zeros out; default: a little below the model's"
        ),
    ] = None,
    texts: TextsOption = None,
    inputs: InputsOption = 100,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write `openvino_model.xml` and `.bin`, task head included, and compare them with torch.

    The setting for sparse weights stands in `export.json`: `load_openvino` compiles with it. OpenVINO uses it for
    8-bit weights on CPUs with AMX, and ignores it elsewhere. int8 takes the scales of a model that was trained in
    int8, or those that `--calibrate` finds.

    Try: `sparse-pretrain export openvino runs/sst2 runs/sst2/openvino --dtype fp16`
    """
    from sparse_pretrain.export.openvino import export_openvino

    console = Console(stderr=as_json)
    facts = export_openvino(
        model, out, console, dtype.value, sparse_rate, texts, inputs, overwrite, calibrate
    )
    print_json(facts) if as_json else say_files(out, facts, console)


def say_files(out: Path, facts: dict[str, Any], console: Console) -> None:
    """Print a line for each exported file: size, and how far its outputs are from torch's."""
    from sparse_pretrain.files import show_bytes

    for name, file in facts["files"].items():
        console.print(
            f"{out / name}: {show_bytes(file['bytes'])}; {facts['model']}; largest difference from torch "
            f"{file['max_difference']:.2g} of {file['largest_output']:.3g}, same answer {file['same_answer']:.2%} "
            f"({file['inputs']} inputs, {facts['checked_with']})",
            soft_wrap=True,
            highlight=False,
        )


@app.command("check")
def check_command(
    model: Annotated[str, typer.Argument(help="a fine-tuning run, or its model folder")],
    exports: Annotated[list[Path], typer.Argument(help="folders that `export onnx` or `openvino` wrote")],
    task: Annotated[
        Optional[str],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="a fine-tuning recipe; default: the one the model was fine-tuned with"),
    ] = None,
    split: Annotated[str, typer.Option(help="validation, test, or train")] = "validation",
    within: Annotated[
        Optional[float],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="how much worse than torch a file may be, such as 0.01", min=0.0),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the task's metric through exported files: onnxruntime and OpenVINO beside torch.

    torch rounds when the model was trained in int8. Exit code 1 when a file is worse than torch by more than
    `--within`.

    Try: `sparse-pretrain export check runs/sst2-int8 runs/sst2-int8/onnx runs/sst2-int8/openvino --within 0.01`
    """
    from sparse_pretrain.export.task_metric import check_metric, render_metric

    console = Console(stderr=as_json)
    facts = check_metric(model, exports, console, task, split, within)
    print_json(facts) if as_json else render_metric(facts, console)


@app.command("report")
def report_command(
    models: Annotated[list[str], typer.Argument(help="model folders or hub names, sparse and dense")],
    output: Annotated[Path, typer.Option(help="folder for report.json, report.md and report.png")] = Path(
        "runs/export-report"
    ),
    texts: TextsOption = None,
    threads: Annotated[int, typer.Option(help="cores used by every engine; 0: all", min=0)] = 0,
    task: Annotated[
        bool,
        typer.Option("--task", help="also measure each engine on the data a model was fine-tuned with"),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="tiny inputs, two calls: to see that it works")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure size in every format, encoder compression, answers and speed: dense and sparse side by side.

    Speed: batch 1 and 32, 128 and 384 tokens, by torch, onnxruntime (fp32, int8) and OpenVINO (fp32, its own choice);
    calls of dense and sparse alternate; medians. A sparse model without a dense one of its shape is compared with
    itself, zeros filled with noise. Says so where zeros give no speed.

    Try: `sparse-pretrain export report runs/sst2/model runs/sst2-dense/model --output runs/report`
    """
    import os

    from sparse_pretrain.export.report import ReportSettings, quick_settings, write_report
    from sparse_pretrain.export.report_card import markdown

    cores = threads or os.cpu_count() or 1
    settings = quick_settings(cores) if quick else ReportSettings(threads=cores)
    console = Console(stderr=as_json)
    facts = write_report(models, output, settings, console, texts, task)
    if as_json:
        print_json(facts)
        return
    console.print(markdown(facts), markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {output}: report.json, report.md, report.png", soft_wrap=True)


@app.command("two-four")
def two_four_command(
    model: ModelArgument,
    out: OutArgument,
    skip_others: Annotated[
        bool, typer.Option("--skip-others", help="store prunable matrices that are not 2:4 as they are")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write 2:4 matrices as NVIDIA's sparse tensor cores have them: two values of four, and two bits for each.

    Exit code 2 when a matrix is not 2:4: which one, where, and how many of four it keeps. `export unpack` gives the
    plain folder back.

    Try: `sparse-pretrain export two-four runs/bert-base-2-of-4/release runs/bert-base-2-of-4/two-four`
    """
    from sparse_pretrain.export.two_four import export_two_four
    from sparse_pretrain.files import show_bytes

    console = Console(stderr=as_json)
    facts = export_two_four(model, out, console, skip_others, overwrite)
    if as_json:
        print_json(facts)
        return
    console.print(
        f"{out}: {show_bytes(facts['bytes'])}, dense {show_bytes(facts['dense_bytes'])}; {facts['matrices']} matrices "
        f"{show_bytes(facts['prunable_bytes'])}, dense {show_bytes(facts['dense_prunable_bytes'])} "
        f"({facts['dense_prunable_bytes'] / facts['prunable_bytes']:.2f} x smaller)",
        soft_wrap=True,
        highlight=False,
    )
