"""One fine-tuning run: task + model + locked masks -> a model folder and its scores."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.checkpoint.staged import replace_folder
from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file, write_json, write_text
from sparse_pretrain.finetune.batches import Collate, Split, collator, encode, measure
from sparse_pretrain.finetune.evaluate import RECIPE
from sparse_pretrain.finetune.forward import TaskTrainer, freeze_unused
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import TaskKind
from sparse_pretrain.finetune.mask_lock import MaskLock, nonzero_outside
from sparse_pretrain.finetune.masks import FoundMasks, find_masks
from sparse_pretrain.finetune.progress import ProgressReport, metrics_row
from sparse_pretrain.finetune.ranks import join_ranks, rows_of_a_rank, together, voice
from sparse_pretrain.finetune.recipe import AUTO, FinetuneRecipe
from sparse_pretrain.finetune.result import FinetuneResult, render_result
from sparse_pretrain.finetune.task_model import load_task_model, load_tokenizer
from sparse_pretrain.finetune.tasks import TRAIN, VALIDATION, load_task
from sparse_pretrain.finetune.teacher import check_teacher, load_teacher, teacher_recipe
from sparse_pretrain.finetune.unfinished import FOLDER, PROVENANCE, discard, keeps_epochs, newest_epoch
from sparse_pretrain.finetune.zero import forget_zero, forward_in_bf16, make_whole, zero_config
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.quantization.layers import QuantizedLayer
from sparse_pretrain.quantization.prepare import prepare_quantization
from sparse_pretrain.quantization.schedule import QuantizationSchedule
from sparse_pretrain.quantization.stored import save_quantization
from sparse_pretrain.training.precision import resolve_precision
from sparse_pretrain.training.provenance import provenance
from sparse_pretrain.training.world import World

METRICS = "metrics.json"
LOG = "metrics.jsonl"
MODEL = "model"
# Of several runs (finetune.campaign); the folder of such is none of a single run.
SUMMARY = "summary.json"
ROWS_OF_LOG = 50
# What `launch local` makes before there are ranks.
RANK_LOGS = "logs"
# Apart by more than the seeds that people count up.
RANK_SEEDS = 1_000_003


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names loaded and checked; nothing is written yet.

    `labels` are the names of the classes; `fingerprint` is that of all texts and labels; `teacher` is where the
    fine-tuned teacher lies, if there is one (`teacher: auto`: once it is trained); `int8` are the layers that are
    trained in int8, by name; `world` are the ranks that train it, this process among them.
    """

    recipe: FinetuneRecipe
    output: Path
    kind: TaskKind
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    collate: Collate
    labels: tuple[str, ...]
    splits: dict[str, Split]
    fingerprint: str
    found: FoundMasks
    bf16: bool
    warnings: list[str]
    int8: dict[str, QuantizedLayer]
    world: World
    teacher: str | None = None

    @property
    def rows(self) -> int:
        """Examples of an optimizer step that are this rank's own."""
        return rows_of_a_rank(self.recipe.training.batch_size, self.world.size)

    def measure(self, split: str) -> dict[str, float]:
        """Return the metrics of one split, on every rank (collective)."""
        # Levels times scale are rounded once more in bf16; no int8 engine does that.
        bf16 = self.bf16 and not self.int8
        return measure(
            self.kind, self.model, self.splits[split], self.collate, 2 * self.rows, bf16, self.world
        )


def finetune(recipe: FinetuneRecipe, console: Console) -> FinetuneResult:
    """Fine-tune a model on a task with its zeros locked; `teacher: auto` trains its teacher first, once.

    `seed` counts, not `seeds` (see `finetune.campaign`). Everything that can be wrong with recipe, data and model
    is checked before anything is written. Under torchrun and the like this is one rank of several: all of them call
    it, and have the same result; the first one prints and writes.

    Raises:
        UserError: the user's mistakes.
        MaskBrokenError: a weight outside its mask is not zero at the end (no model is saved then).
        FloatingPointError: training ended in NaN or infinite weights (no model is saved then).
    """
    started = time.perf_counter()
    job = prepare(recipe)
    world = job.world
    console = voice(world, console)
    teacher = teacher_of(job)
    for warning in job.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)
    if len(job.found.masks):
        console.print(shown_masks(job.found), soft_wrap=True)
    if recipe.distillation is not None and recipe.distillation.teacher == AUTO:
        job = replace(job, teacher=train_teacher(recipe, job.fingerprint, console))
        teacher = teacher_of(job)
    epoch = world.on_first(lambda: newest_epoch(recipe, job.fingerprint, world.size))
    if epoch is None:
        world.on_first(lambda: open_output(job))
    else:
        console.print(f"going on behind the last whole epoch: {epoch}", soft_wrap=True)
    seconds = train(job, teacher, console, epoch)
    refuse_not_finite(job.model)
    metrics = {name: job.measure(name) for name in job.splits if name != TRAIN}
    world.on_first(lambda: write_model(job, metrics))
    result = FinetuneResult(
        output=job.output,
        model_folder=job.output / MODEL,
        metric=recipe.task.headline,
        score=metrics[VALIDATION][recipe.task.headline],
        metrics=metrics,
        examples={name: len(split.examples) for name, split in job.splits.items()},
        masks=job.found.origin,
        sparsity=job.found.masks.total_sparsity(),
        nonzero_outside_masks=sum(nonzero_outside(job.model, job.found.masks).values()),
        train_seconds=round(seconds, 3),
        seconds=round(time.perf_counter() - started, 3),
        warnings=job.warnings,
        teacher=job.teacher,
        int8_layers=len(job.int8),
    )
    world.on_first(lambda: write_json(job.output / METRICS, result.to_json()))
    render_result(result, console)
    return result


def prepare(recipe: FinetuneRecipe) -> Job:
    """Load and check everything a recipe names, on every rank (collective).

    Raises:
        UserError: the user's mistakes.
    """
    world = join_ranks(recipe.training)
    return together(world, lambda: load(recipe, world))


def load(recipe: FinetuneRecipe, world: World) -> Job:
    """Load and check everything a recipe names, on this rank.

    Raises:
        UserError: the user's mistakes.
    """
    output = recipe.output
    check_output(output, recipe.overwrite)
    task, training = recipe.task, recipe.training
    data = load_task(task)
    set_seed(recipe.seed)  # before the new head draws its weights
    model = load_task_model(recipe.model, task, data.labels, training.dropout)
    tokenizer = load_tokenizer(recipe.model, model.config, training.max_length, task.kind)
    ignored = FoundMasks(MaskSet({}), "ignored")
    found = ignored if recipe.masks == "ignore" else find_masks(model, recipe.model)
    if recipe.masks == "require" and found.origin == "none":
        raise UserError(
            f"{recipe.model}: dense (no mask file, no share of zeros that would be masks), and masks = 'require'; "
            "give a sparse model, or set masks=lock"
        )
    teacher = recipe.distillation
    if teacher is not None:
        check_teacher(teacher, task, data.labels, tokenizer, training.max_length)
    kind = kind_of(task)
    splits = encode(kind, tokenizer, data.splits, training.max_length)
    warnings = mask_warnings(recipe, model, found)
    return Job(
        recipe=recipe,
        output=output,
        kind=kind,
        model=model,
        tokenizer=tokenizer,
        collate=collator(kind, tokenizer),
        labels=data.labels,
        splits=splits,
        fingerprint=data.fingerprint(),
        found=found,
        bf16=resolve_precision(training.precision) == "bf16",
        warnings=warnings,
        int8=prepare_int8(recipe, model, len(splits[TRAIN].encoded)),
        world=world,
        teacher=None if teacher is None or teacher.teacher == AUTO else teacher.teacher,
    )


def prepare_int8(recipe: FinetuneRecipe, model: PreTrainedModel, rows: int) -> dict[str, QuantizedLayer]:
    """Put int8 layers into a model when the recipe wants them.

    Raises:
        UserError: a layer that cannot be trained in int8, or a run that ends before it rounds anything.
    """
    section = recipe.quantization
    if section is None:
        return {}
    steps = total_steps(recipe, rows)
    if section.calibration_steps >= steps:
        raise UserError(
            f"quantization.calibration_steps = {section.calibration_steps}: the run has {steps} optimizer steps in "
            "all; use fewer, such as a tenth of that"
        )
    return prepare_quantization(model, section.momentum)


def teacher_of(job: Job) -> PreTrainedModel | None:
    """Load the job's teacher, if it has one by now (collective): whole on every rank, whatever the ZeRO stage."""
    source = job.teacher
    if source is None:
        return None
    return together(job.world, lambda: load_teacher(source, job.recipe.task, job.labels))


def train_teacher(recipe: FinetuneRecipe, fingerprint: str, console: Console) -> str:
    """Train the teacher of `teacher: auto`, or find it trained; return its model folder (collective)."""
    own = teacher_recipe(recipe, fingerprint)
    world = join_ranks(recipe.training)
    if world.on_first((own.output / METRICS).is_file):
        console.print(f"teacher: already there: {own.output}", soft_wrap=True)
    else:
        console.print(f"teacher: fine-tuning {own.model} first", soft_wrap=True)
        finetune(own, console)
    return str(own.output / MODEL)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder of somebody else's, and a finished run unless it may be replaced; go over a broken run."""
    if output.is_file():
        raise UserError(f"output = {output}: is a file; give a folder")
    if not holds_something(output):
        return
    if not (output / RECIPE).is_file():
        raise UserError(f"output = {output}: exists and is no fine-tuning run; give another folder")
    if (output / SUMMARY).is_file():
        raise UserError(f"output = {output}: holds several runs (seeds or a sweep); give another folder")
    if (output / METRICS).is_file() and not overwrite:
        raise UserError(
            f"output = {output}: holds a finished run; give another folder, or set overwrite=true"
        )


def holds_something(output: Path) -> bool:
    """Say whether a run's folder exists and has more in it than what `launch local` puts there before ranks start."""
    return output.is_dir() and any(path.name != RANK_LOGS for path in output.iterdir())


def mask_warnings(recipe: FinetuneRecipe, model: PreTrainedModel, found: FoundMasks) -> list[str]:
    """Return what a user should know about the masks before training."""
    if found.origin == "none":
        return [
            f"{recipe.model} is dense (no mask file, no share of zeros that would be masks): nothing is locked"
        ]
    outside = sum(nonzero_outside(model, found.masks).values())
    if outside:
        return [
            f"{recipe.model}: {outside:,} weights outside its masks are not zero; they are set to zero now"
        ]
    return []


def shown_masks(found: FoundMasks) -> str:
    """Return what is locked, before training: how many weights, what share of them, and how that is known."""
    weights = sum(mask.numel() for mask in found.masks.values())
    return (
        f"masks (from the {found.origin}): {len(found.masks)} prunable matrices of {weights:,} weights, "
        f"{found.masks.total_sparsity():.2%} of them zero and locked"
    )


def open_output(job: Job) -> None:
    """Make the run folder, with nothing in it of an earlier run."""
    job.output.mkdir(parents=True, exist_ok=True)
    for name in (METRICS, LOG):
        (job.output / name).unlink(missing_ok=True)
    shutil.rmtree(job.output / MODEL, ignore_errors=True)
    discard(job.output)
    write_text(job.output / RECIPE, to_yaml(job.recipe))
    precision = "bf16" if job.bf16 else "fp32"
    about = provenance(job.fingerprint, world_size=job.world.size, precision=precision)
    write_json(job.output / PROVENANCE, about)


def train(job: Job, teacher: PreTrainedModel | None, console: Console, epoch: Path | None) -> float:
    """Run the `Trainer`, from a checkpoint of its own where there is one; return the seconds it took.

    Collective; afterwards every rank has the whole model, at any ZeRO stage.
    """
    training, encoded = job.recipe.training, job.splits[TRAIN].encoded
    between_epochs = (lambda: job.measure(VALIDATION)) if training.evaluate == "epoch" else None
    log = job.output / LOG if job.world.is_first else None
    progress = ProgressReport(console, f"fine-tuning {job.output.name}", log, between_epochs)
    methods: list[TrainerCallback] = [MaskLock(job.found.masks)] if len(job.found.masks) else []
    section = job.recipe.quantization
    if section is not None:
        steps = total_steps(job.recipe, len(encoded))
        methods.append(QuantizationSchedule(section.calibration_steps, section.freeze_step(steps)))
    if job.world.size > 1:
        freeze_unused(job.kind, job.model, job.collate([encoded[0]]))
    try:
        with quiet_libraries():
            trainer = TaskTrainer(
                model=job.model,
                args=training_arguments(job),
                train_dataset=encoded,
                data_collator=job.collate,
                callbacks=[progress, *methods],
            )
            trainer.kind, trainer.batch_size = job.kind, training.batch_size
            trainer.world, trainer.bf16 = job.world, job.bf16
            trainer.teacher, trainer.distillation = teacher, job.recipe.distillation
            trainer.remove_callback(PrinterCallback)
            if not job.world.is_first:  # each rank drops others; the first one draws as one process does
                torch.manual_seed(job.recipe.seed + RANK_SEEDS * job.world.rank)
            if training.zero_stage is not None and job.bf16:
                forward_in_bf16(job.model)
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=None if epoch is None else str(epoch))
            seconds = time.perf_counter() - started
            if training.zero_stage is not None:
                make_whole(job.model, trainer.deepspeed)
            return seconds
    finally:
        progress.stop()
        if training.zero_stage is not None:
            forget_zero()


def training_arguments(job: Job) -> TrainingArguments:
    """Return the `Trainer`'s settings; everything that would write or print is ours."""
    training = job.recipe.training
    steps = total_steps(job.recipe, len(job.splits[TRAIN].encoded))
    arguments = TrainingArguments(
        output_dir=str(job.output / FOLDER),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=job.rows,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.warmup_ratio * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.gradient_clipping,
        optim="adamw_torch_fused",
        bf16=job.bf16 and training.zero_stage is None,
        deepspeed=None if training.zero_stage is None else zero_config(training.zero_stage),
        ddp_find_unused_parameters=job.world.size == 1,  # several ranks have none: `freeze_unused`
        ddp_broadcast_buffers=False,  # ranks have the same: fixed ones, and ranges that they observe together
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        remove_unused_columns=False,
        seed=job.recipe.seed,
        logging_steps=max(1, steps // ROWS_OF_LOG),
        save_strategy="epoch" if keeps_epochs(job.recipe) else "no",
        save_total_limit=2,  # a kill may leave the newest half written
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # A process is a rank, with one GPU: without this the Trainer would take all that it sees, and larger batches.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def total_steps(recipe: FinetuneRecipe, rows: int) -> int:
    """Return the number of optimizer steps of a run over so many rows; an epoch's last batch may be smaller."""
    training = recipe.training
    return training.epochs * -(-rows // training.batch_size)


def write_model(job: Job, metrics: dict[str, dict[str, float]]) -> None:
    """Write what a run ends with, but for its result."""
    append_final(job, metrics)
    save_model(job, job.output / MODEL)
    discard(job.output)


def append_final(job: Job, metrics: dict[str, dict[str, float]]) -> None:
    """Add the final metrics of every split to the log."""
    steps = total_steps(job.recipe, len(job.splits[TRAIN].encoded))
    with (job.output / LOG).open("a", encoding="utf-8") as file:
        for split, values in metrics.items():
            row = {"split": split, **values}
            file.write(metrics_row("evaluation", steps, job.recipe.training.epochs, row))


def refuse_not_finite(model: PreTrainedModel) -> None:
    """Raise when training has diverged."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"{name} is NaN or infinite after training; lower training.learning_rate"
            )


def save_model(job: Job, folder: Path) -> None:
    """Write weights, config, tokenizer, masks and int8 scales under a temporary name, then rename."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with quiet_libraries():
        job.model.save_pretrained(staging)
        job.tokenizer.save_pretrained(staging)
    if len(job.found.masks):
        job.found.masks.save(staging / MASK_FILE)
    if job.recipe.quantization is not None:
        save_quantization(job.model, staging, job.recipe.quantization.momentum)
    for path in staging.iterdir():
        fsync_file(path)
    replace_folder(staging, folder)
