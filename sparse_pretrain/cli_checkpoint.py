"""The `sparse-pretrain checkpoint` commands. Thin: every command parses, calls one function, and prints.

Libraries are imported inside the commands: `--help` must not wait for torch.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from sparse_pretrain.cli_options import JsonOption, print_json

app = typer.Typer(no_args_is_help=True, help="Checkpoints of a run: list, verify, convert, delete old ones.")

RunArgument = Annotated[Path, typer.Argument(help="a run folder, or its folder of checkpoints")]


class Form(StrEnum):
    """What `convert` writes."""

    FOLDER = "folder"
    SAFETENSORS = "safetensors"


class Precision(StrEnum):
    """In what precision `convert` writes."""

    FP32 = "fp32"
    BF16 = "bf16"


@app.command("ls")
def ls_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """List checkpoints: size, ranks, ZeRO stage, start of the run, sparsity, held-out loss, and whether sizes match.

    Reads no weights. Below the table: what is wrong, and what saves that did not finish have left.

    Try: `sparse-pretrain checkpoint ls runs/bert-base-85`
    """
    from sparse_pretrain.checkpoint.listing import list_checkpoints, render

    report = list_checkpoints(run)
    print_json(report) if as_json else render(report, Console())


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="a checkpoint, or a run folder (its newest checkpoint)")],
    every: Annotated[bool, typer.Option("--all", help="all checkpoints of the run")] = False,
    as_json: JsonOption = False,
) -> None:
    """Read a checkpoint from end to end: checksums, fragments, moments, masks, zeros. Exit code 1: something is wrong.

    Prints the sparsity of every weight and one line for each finding. Needs no GPU; one parameter is in memory
    at a time.

    Try: `sparse-pretrain checkpoint verify runs/bert-base-85 --all`
    """
    from sparse_pretrain.checkpoint.verify import choose, render, verify

    console = Console(stderr=as_json)
    reports = []
    for folder in choose(path, every):
        reports.append(verify(folder, console))
        if not as_json:
            render(reports[-1], console, table=not every)
    good = all(report["ok"] for report in reports)
    if as_json:
        print_json({"ok": good, "checkpoints": reports})
    raise typer.Exit(0 if good else 1)


@app.command("convert")
def convert_command(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint, or a run folder (its newest checkpoint)")],
    out: Annotated[Path, typer.Argument(help="folder, or with --to safetensors file, to write")],
    to: Annotated[
        Form, typer.Option("--to", help="folder: Hugging Face; safetensors: one file")
    ] = Form.FOLDER,
    dtype: Annotated[Precision, typer.Option("--dtype", help="precision of the weights")] = Precision.FP32,
    dense: Annotated[
        bool, typer.Option("--dense", help="keep the values of pruned weights; default: exact zeros")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace what an earlier one wrote")] = False,
) -> None:
    """Write a checkpoint's weights for other programs, without DeepSpeed or a GPU.

    A folder loads with `AutoModelForMaskedLM.from_pretrained`; `release` makes one with a model card. One file
    is streamed: memory for one parameter and the masks is enough. Either appears when it is complete, not before.

    Try: `sparse-pretrain checkpoint convert runs/bert-base-85 weights.safetensors --to safetensors`
    """
    from sparse_pretrain.checkpoint.convert import DTYPES, check_target, convert_to_file, convert_to_folder
    from sparse_pretrain.checkpoint.listing import say
    from sparse_pretrain.checkpoint.verify import choose
    from sparse_pretrain.files import show_bytes

    out = out.expanduser()
    check_target(out, to.value, overwrite)
    (source,) = choose(checkpoint)
    console = Console()
    if to is Form.SAFETENSORS:
        written = convert_to_file(source, out, console, DTYPES[dtype], dense)
    else:
        written = convert_to_folder(source, out, DTYPES[dtype], dense)
    masks = ", masks not applied" if dense else ""
    say(console, f"{source} -> {out}: {show_bytes(written)}, {dtype}{masks}")


@app.command("prune")
def prune_command(
    run: RunArgument,
    keep_last: Annotated[
        Optional[int],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="newest whole ones that stay; default: checkpoint.keep of the recipe", min=1),
    ] = None,
    keep_every: Annotated[
        Optional[int],  # noqa: UP045 - typer evaluates the annotation
        typer.Option(help="whole ones at multiples of so many steps stay; default: the recipe's", min=1),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be deleted")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete old checkpoints and what dead saves have left; compares checksums first, so that whole ones stay.

    Broken ones count for nothing: they go once enough are whole, not before. Refused while a process of this
    machine trains in the folder.

    Try: `sparse-pretrain checkpoint prune runs/bert-base-85 --keep-last 1 --dry-run`
    """
    from sparse_pretrain.checkpoint.listing import find_checkpoints
    from sparse_pretrain.checkpoint.prune import keep_rule, prune, render

    checkpoints = find_checkpoints(run)
    rule = keep_rule(checkpoints)
    asked = {"last": keep_last, "every": keep_every}
    rule = rule.model_copy(update={key: value for key, value in asked.items() if value is not None})
    console = Console(stderr=as_json)
    report = prune(checkpoints, rule, dry_run, console)
    print_json(report) if as_json else render(report, console)
