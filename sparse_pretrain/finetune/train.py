"""One fine-tuning run: task + model + locked masks -> a model folder and its scores."""

import os
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
from sparse_pretrain.finetune.forward import TaskTrainer
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import TaskKind
from sparse_pretrain.finetune.mask_lock import MaskLock, nonzero_outside
from sparse_pretrain.finetune.masks import FoundMasks, find_masks
from sparse_pretrain.finetune.progress import ProgressReport, metrics_row
from sparse_pretrain.finetune.recipe import AUTO, FinetuneRecipe
from sparse_pretrain.finetune.result import FinetuneResult, render_result
from sparse_pretrain.finetune.task_model import load_task_model, load_tokenizer
from sparse_pretrain.finetune.tasks import TRAIN, VALIDATION, load_task
from sparse_pretrain.finetune.teacher import check_teacher, load_teacher, teacher_recipe
from sparse_pretrain.finetune.unfinished import FOLDER, PROVENANCE, discard, keeps_epochs, newest_epoch
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.quantization.layers import QuantizedLayer
from sparse_pretrain.quantization.prepare import prepare_quantization
from sparse_pretrain.quantization.schedule import QuantizationSchedule
from sparse_pretrain.quantization.stored import save_quantization
from sparse_pretrain.training.precision import resolve_precision
from sparse_pretrain.training.provenance import provenance

METRICS = "metrics.json"
LOG = "metrics.jsonl"
MODEL = "model"
# Of several runs (finetune.campaign); the folder of such is none of a single run.
SUMMARY = "summary.json"
ROWS_OF_LOG = 50


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names loaded and checked; nothing is written yet.

    `labels` are the names of the classes; `fingerprint` is that of all texts and labels; `teacher` is where the
    fine-tuned teacher lies, if there is one (`teacher: auto`: once it is trained); `int8` are the layers that are
    trained in int8, by name.
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
    teacher: str | None = None

    def measure(self, split: str) -> dict[str, float]:
        """Return the metrics of one split."""
        rows = 2 * self.recipe.training.batch_size
        # Levels times scale are rounded once more in bf16; no int8 engine does that.
        bf16 = self.bf16 and not self.int8
        return measure(self.kind, self.model, self.splits[split], self.collate, rows, bf16)


def finetune(recipe: FinetuneRecipe, console: Console) -> FinetuneResult:
    """Fine-tune a model on a task with its zeros locked; `teacher: auto` trains its teacher first, once.

    `seed` counts, not `seeds` (see `finetune.campaign`). Everything that can be wrong with recipe, data and model
    is checked before anything is written.

    Raises:
        UserError: the user's mistakes.
        MaskBrokenError: a weight outside its mask is not zero at the end (no model is saved then).
        FloatingPointError: training ended in NaN or infinite weights (no model is saved then).
    """
    started = time.perf_counter()
    job = prepare(recipe)
    teacher = teacher_of(job)
    for warning in job.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)
    if len(job.found.masks):
        console.print(shown_masks(job.found), soft_wrap=True)
    if recipe.distillation is not None and recipe.distillation.teacher == AUTO:
        job = replace(job, teacher=train_teacher(recipe, job.fingerprint, console))
        teacher = teacher_of(job)
    epoch = newest_epoch(recipe, job.fingerprint)
    if epoch is None:
        open_output(job)
    else:
        console.print(f"going on behind the last whole epoch: {epoch}", soft_wrap=True)
    seconds = train(job, teacher, console, epoch)
    refuse_not_finite(job.model)
    metrics = {name: job.measure(name) for name in job.splits if name != TRAIN}
    append_final(job, metrics)
    save_model(job, job.output / MODEL)
    discard(job.output)
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
    write_json(job.output / METRICS, result.to_json())
    render_result(result, console)
    return result


def prepare(recipe: FinetuneRecipe) -> Job:
    """Load and check everything a recipe names.

    Raises:
        UserError: the user's mistakes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("fine-tuning runs in one process; start it without torchrun or srun")
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
    """Load the job's teacher, if it has one by now."""
    return None if job.teacher is None else load_teacher(job.teacher, job.recipe.task, job.labels)


def train_teacher(recipe: FinetuneRecipe, fingerprint: str, console: Console) -> str:
    """Train the teacher of `teacher: auto`, or find it trained; return its model folder."""
    own = teacher_recipe(recipe, fingerprint)
    if (own.output / METRICS).is_file():
        console.print(f"teacher: already there: {own.output}", soft_wrap=True)
    else:
        console.print(f"teacher: fine-tuning {own.model} first", soft_wrap=True)
        finetune(own, console)
    return str(own.output / MODEL)


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder of somebody else's, and a finished run unless it may be replaced; go over a broken run."""
    if output.is_file():
        raise UserError(f"output = {output}: is a file; give a folder")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / RECIPE).is_file():
        raise UserError(f"output = {output}: exists and is no fine-tuning run; give another folder")
    if (output / SUMMARY).is_file():
        raise UserError(f"output = {output}: holds several runs (seeds or a sweep); give another folder")
    if (output / METRICS).is_file() and not overwrite:
        raise UserError(
            f"output = {output}: holds a finished run; give another folder, or set overwrite=true"
        )


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
    about = provenance(job.fingerprint, world_size=1, precision="bf16" if job.bf16 else "fp32")
    write_json(job.output / PROVENANCE, about)


def train(job: Job, teacher: PreTrainedModel | None, console: Console, epoch: Path | None) -> float:
    """Run the `Trainer`, from a checkpoint of its own where there is one; return the seconds it took."""
    between_epochs = (lambda: job.measure(VALIDATION)) if job.recipe.training.evaluate == "epoch" else None
    progress = ProgressReport(console, f"fine-tuning {job.output.name}", job.output / LOG, between_epochs)
    methods: list[TrainerCallback] = [MaskLock(job.found.masks)] if len(job.found.masks) else []
    section = job.recipe.quantization
    if section is not None:
        steps = total_steps(job.recipe, len(job.splits[TRAIN].encoded))
        methods.append(QuantizationSchedule(section.calibration_steps, section.freeze_step(steps)))
    try:
        with quiet_libraries():
            trainer = TaskTrainer(
                model=job.model,
                args=training_arguments(job),
                train_dataset=job.splits[TRAIN].encoded,
                data_collator=job.collate,
                callbacks=[progress, *methods],
            )
            trainer.kind = job.kind
            trainer.teacher, trainer.distillation = teacher, job.recipe.distillation
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            trainer.train(resume_from_checkpoint=None if epoch is None else str(epoch))
            return time.perf_counter() - started
    finally:
        progress.stop()


def training_arguments(job: Job) -> TrainingArguments:
    """Return the `Trainer`'s settings; everything that would write or print is ours."""
    training = job.recipe.training
    steps = total_steps(job.recipe, len(job.splits[TRAIN].encoded))
    return TrainingArguments(
        output_dir=str(job.output / FOLDER),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        warmup_steps=round(training.warmup_ratio * steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.gradient_clipping,
        optim="adamw_torch_fused",
        bf16=job.bf16,
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


def total_steps(recipe: FinetuneRecipe, rows: int) -> int:
    """Return the number of optimizer steps of a run over so many rows; an epoch's last batch may be smaller."""
    training = recipe.training
    return training.epochs * -(-rows // training.batch_size)


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
