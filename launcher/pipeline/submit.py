"""A pipeline into SLURM's queue: what is not done and not under way, each job behind those that it needs."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from pathlib import Path

from launcher.job import SLURM_FOLDER
from launcher.pipeline.look import plan_pipeline
from launcher.pipeline.plan import Decision
from launcher.pipeline.record import (
    PipelineRecord,
    new_record,
    only_one_launch,
    read_record,
    write_record,
)
from launcher.pipeline.render_command import job_output, render_command_stage
from launcher.pipeline.stages import DONE, StageJob
from launcher.render import render
from launcher.submit import (
    ask_slurm,
    check_before_the_queue,
    dependency,
    submit,
    submit_script,
    write_script,
)
from sparse_pretrain.errors import UserError

Say = Callable[[str], None]


def submit_pipeline(
    file: str, stages: Sequence[StageJob], output: Path, redo: Sequence[str], say: Say
) -> PipelineRecord:
    """Submit what is not done and not under way; write each job down at once.

    Args:
        file: the pipeline as the user named it.
        stages: each after all that it needs.
        output: the pipeline's folder.
        redo: stages to do anew although they are done.
        say: takes lines for the user.

    Returns:
        What is written down of it now.

    Raises:
        UserError: something is wrong, or SLURM refuses a job; those before it are in the queue and written down.
        FailedError: SLURM does not answer.
    """
    with only_one_launch(output):
        decisions = plan_pipeline(stages, output, redo)
        scripts = stage_scripts(decisions)
        (output / DONE).mkdir(parents=True, exist_ok=True)
        record = new_record(file, stages, read_record(output))
        write_record(output, record)
        jobs: dict[str, list[str]] = {}
        for decision in decisions:
            stage = decision.stage
            for element in decision.finished:
                # It is not there yet when a training was done without the pipeline.
                element.done.touch()
            jobs[stage.name] = [*decision.under_way.values()]
            if not decision.submit:
                say(describe(decision))
                continue
            needs = [number for need in stage.needs for number in jobs[need]]
            number = submit_stage(decision, scripts[stage.name], needs, say)
            jobs[stage.name].append(number)
            record = with_job(record, decision, number)
            write_record(output, record)
            say(describe(decision, number, needs))
    return record


def stage_scripts(decisions: Sequence[Decision]) -> dict[str, str]:
    """Return the scripts of all stages that are to be submitted, after what can be checked before the queue.

    Raises:
        UserError: naming the stage.
    """
    scripts = {}
    finished = {decision.stage.name for decision in decisions if decision.is_finished}
    for decision in decisions:
        stage = decision.stage
        if not decision.submit:
            continue
        try:
            if stage.train is None or stage.recipe is None:
                scripts[stage.name] = render_command_stage(stage, decision.submit)
                continue
            scripts[stage.name] = render(stage.site, stage.train)
            # Data and models that another stage makes are not there yet.
            if finished.issuperset(stage.needs):
                check_before_the_queue(stage.site, stage.train, stage.recipe)
        except UserError as error:
            raise UserError(f"stages.{stage.name}: {error}") from None
    return scripts


def submit_stage(decision: Decision, script: str, needs: Sequence[str], say: Say) -> str:
    """Submit one stage; return its job's number, of a chain the last one's."""
    stage = decision.stage
    for number in decision.cancel:
        ask_slurm(["scancel", number])
    for element in decision.submit:
        element.done.unlink(missing_ok=True)
    if stage.train is not None:
        # Cancelled jobs take a moment to leave the queue.
        force = bool(decision.cancel)
        return submit(stage.site, stage.site_file, stage.train, stage.chain, force, needs, say)[-1].job_id
    path = write_script(stage.output / SLURM_FOLDER, script, f"{stage.name}.sbatch")
    return submit_script(["sbatch", "--parsable", *dependency(needs), str(path)], stage.folder)


def with_job(record: PipelineRecord, decision: Decision, number: str) -> PipelineRecord:
    """Return the record after a stage's job was submitted."""
    stage = decision.stage
    before = record.stages[stage.name]
    fresh = {
        element.number: f"{number}_{element.number}" if len(stage.elements) > 1 else number
        for element in decision.submit
    }
    elements = tuple(
        replace(known, job_id=fresh[place], output=str(job_output(stage, fresh[place])))
        if place in fresh
        else known
        for place, known in enumerate(before.elements)
    )
    return replace(record, stages={**record.stages, stage.name: replace(before, elements=elements)})


def describe(decision: Decision, number: str | None = None, needs: Sequence[str] = ()) -> str:
    """Return one line about a stage: done, under way, submitted (behind which jobs), or to be submitted."""
    total = len(decision.stage.elements)

    def part(elements: Sized) -> str:
        return f" ({len(elements)} of {total})" if total > 1 else ""

    parts = []
    if decision.finished:
        parts.append(f"done{part(decision.finished)}")
    if decision.under_way:
        numbers = ", ".join(dict.fromkeys(decision.under_way.values()))
        parts.append(f"under way{part(decision.under_way)} in job {numbers}")
    if decision.submit and number is None:
        parts.append(f"to be submitted{part(decision.submit)}")
    elif decision.submit:
        after = f", after {', '.join(needs)}" if needs else ""
        parts.append(f"submitted job {number}{part(decision.submit)}{after}")
    return f"{decision.stage.name}: {'; '.join(parts)}"
