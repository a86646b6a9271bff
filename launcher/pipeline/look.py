"""Where a pipeline stands: which of its files are there, and which of its jobs wait or run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from launcher.pipeline.plan import Decision, Living, decide
from launcher.pipeline.record import PipelineRecord, read_record
from launcher.pipeline.stages import StageJob
from launcher.query import Job as QueuedJob
from launcher.restart import newest_step
from launcher.submit import living_jobs, my_jobs
from sparse_pretrain.config.changes import recipe_changes
from sparse_pretrain.errors import UserError


def plan_pipeline(stages: Sequence[StageJob], output: Path, redo: Sequence[str] = ()) -> list[Decision]:
    """Decide what to submit of a pipeline; asks SLURM which of its jobs wait or run, changes nothing.

    Args:
        stages: each after all that it needs.
        output: the pipeline's folder.
        redo: stages to do anew although they are done.

    Raises:
        UserError: a job is at work on what is defined otherwise now, a finished training has another recipe, or no
            such stage.
        FailedError: SLURM does not answer.
    """
    check_redo(stages, redo)
    record = read_record(output)
    jobs = my_jobs() if record is not None and record.has_jobs else None
    living, outdated = living_elements(stages, record, jobs)
    done = {path for stage in stages if stage.name not in redo for path in done_files(stage)}
    return decide(stages, done, living, outdated)


def check_redo(stages: Sequence[StageJob], redo: Sequence[str]) -> None:
    """Make sure that stages can be done anew.

    Raises:
        UserError: no such stage, or a training whose run folder is finished: its job would end at once.
    """
    by_name = {stage.name: stage for stage in stages}
    for name in redo:
        if name not in by_name:
            raise UserError(f"--redo {name}: no such stage; there are {', '.join(by_name)}")
        job = by_name[name].train
        if job is not None and newest_step(job.output) >= job.steps:
            raise UserError(
                f"--redo {name}: {job.output} holds all {job.steps} steps; remove or rename it first"
            )


def done_files(stage: StageJob) -> list[Path]:
    """Return the files of a stage's finished elements; also of a training that was done outside the pipeline.

    Raises:
        UserError: the run folder holds a finished training of another recipe.
    """
    found = [element.done for element in stage.elements if element.done.is_file()]
    if found or stage.train is None or stage.recipe is None:
        return found
    run = stage.train.output
    if newest_step(run) < stage.train.steps:
        return []
    try:
        before = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        before = {}
    changes = recipe_changes(before, stage.recipe.model_dump(mode="json"))
    breaking = [str(change) for change in changes if change.breaks]
    if breaking:
        raise UserError(
            f"stages.{stage.name}: {run} holds a finished run of another recipe ({'; '.join(breaking[:3])}): give it "
            "another output, or rename that folder"
        )
    return [stage.elements[0].done]


def living_elements(
    stages: Sequence[StageJob], record: PipelineRecord | None, jobs: Mapping[str, QueuedJob] | None
) -> tuple[dict[Path, Living], dict[str, list[str]]]:
    """Return the jobs that wait or run, by the file of the element that they do; and outdated ones, by stage.

    Outdated is a job that waits to do what its stage is no longer defined to do.

    Args:
        stages: of the pipeline.
        record: what was submitted for it.
        jobs: the user's; None: SLURM is asked only when a training was submitted before.

    Raises:
        UserError: a job is at work on what its stage is no longer defined to do.
    """
    known = {element.done for stage in stages for element in stage.elements}
    names = {stage.name for stage in stages}
    living: dict[Path, Living] = {}
    outdated: dict[str, list[str]] = {}
    for name, stage in (record.stages if record is not None else {}).items():
        for element in stage.elements:
            job = (jobs or {}).get(element.job_id or "")
            if job is None:
                continue
            if Path(element.done) in known:
                living[Path(element.done)] = Living(job.id, job.runs)
            elif name in names and not job.runs:
                outdated.setdefault(name, []).append(job.id)
            else:
                end = f"launch cancel {stage.run}" if stage.run is not None else f"scancel {job.id}"
                raise UserError(
                    f"stages.{name}: changed, and job {job.id} ({job.state.lower()}) still does {element.name} as it "
                    f"was before: {end} first"
                )
    for each in stages:
        if each.train is None or each.name in outdated:
            continue
        # Of a chain the last one is waited for. Also a job that was submitted without the pipeline.
        of_run = living_jobs(each.train.output, jobs)
        if of_run:
            last = max(of_run, key=int)
            living[each.elements[0].done] = Living(last, any(job.runs for job in of_run.values()))
    return living, outdated
