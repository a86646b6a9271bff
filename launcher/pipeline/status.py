"""Where each stage of a pipeline is, from its files and from what SLURM says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.pipeline.record import ElementRecord, StageRecord, read_record
from launcher.query import Job, SlurmError, find_my_jobs
from launcher.watch.folders import last_lines
from launcher.watch.render import as_table, show_progress
from launcher.watch.status import RunStatus, describe_runs
from sparse_pretrain.errors import UserError

HEADER = ("stage", "state", "done", "job", "")
# Enough for the reason, and for what srun and the script say after it.
SHOWN_LINES = 5
# The first of these that any element is in is the stage's.
WORST_FIRST = ("failed", "running", "waiting", "cancelled", "not submitted", "done")


@dataclass(frozen=True)
class Failure:
    """An element that failed: its name, the file of its output, and how that ends."""

    name: str
    output: str
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class StageStatus:
    """One stage, for tables and for scripts.

    Attributes:
        name: of the stage.
        state: done, running, waiting, failed, cancelled (what it needs failed, or somebody cancelled it),
            not submitted.
        done, total: its elements.
        jobs: SLURM's numbers.
        waits_for: stages that it needs and that are not done.
        run: of a training, what its ranks say; None for a command.
        failed: what failed.
    """

    name: str
    state: str
    done: int
    total: int
    jobs: tuple[str, ...]
    waits_for: tuple[str, ...]
    run: RunStatus | None
    failed: tuple[Failure, ...]


@dataclass(frozen=True)
class PipelineStatus:
    """A pipeline: its folder, the file that describes it, its stages, and why SLURM could not be asked."""

    pipeline: str
    file: str
    stages: tuple[StageStatus, ...]
    slurm_problem: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a stage has failed or was cancelled."""
        return any(stage.state in ("failed", "cancelled") for stage in self.stages)


def describe_pipeline(
    output: Path, now: float, patience: float, environment: Mapping[str, str] | None = None
) -> PipelineStatus:
    """Return the status of a pipeline; SLURM is asked once for the jobs, and once for the trainings.

    Args:
        output: its folder.
        now: seconds since 1970.
        patience: seconds without a step after which a training counts as stuck.
        environment: for SLURM's commands.

    Raises:
        UserError: no pipeline was launched there.
    """
    record = read_record(output)
    if record is None:
        raise UserError(f"{output}: no pipeline was launched there (no pipeline.json)")
    jobs: dict[str, Job] = {}
    problem = None
    try:
        if record.has_jobs:
            jobs = {job.id: job for job in find_my_jobs(environment)}
    except SlurmError as error:
        problem = str(error)
    folders = [Path(stage.run) for stage in record.stages.values() if stage.run is not None]
    runs = {run.run: run for run in describe_runs([path for path in folders if path.is_dir()], now, patience)}
    found: dict[str, StageStatus] = {}
    for name, stage in record.stages.items():
        open_needs = tuple(need for need in stage.needs if found[need].state != "done")
        found[name] = describe_stage(name, stage, jobs, runs.get(stage.run or ""), open_needs)
    return PipelineStatus(str(output), record.file, tuple(found.values()), problem)


def describe_stage(
    name: str,
    stage: StageRecord,
    jobs: Mapping[str, Job],
    run: RunStatus | None,
    open_needs: tuple[str, ...],
) -> StageStatus:
    """Return the status of one stage."""
    states = [(element, state_of(element, jobs.get(element.job_id or ""))) for element in stage.elements]
    state = min((state for _, state in states), key=WORST_FIRST.index)
    if state == "waiting" and run is not None and run.is_running:
        # The last job of a chain waits while an earlier one trains.
        state = "running"
    numbers = [element.job_id.split("_")[0] for element, _ in states if element.job_id is not None]
    return StageStatus(
        name=name,
        state=state,
        done=sum(state == "done" for _, state in states),
        total=len(states),
        jobs=tuple(dict.fromkeys(numbers)),
        waits_for=open_needs,
        run=run,
        failed=tuple(
            Failure(element.name, element.output, tuple(last_lines(Path(element.output), SHOWN_LINES)))
            for element, state in states
            if state == "failed" and element.output is not None
        ),
    )


def state_of(element: ElementRecord, job: Job | None) -> str:
    """Return the state of one element.

    Without SLURM's accounting a job that has ended is unknown after minutes: one that printed something has failed,
    one that did not was cancelled before it began.
    """
    if Path(element.done).is_file():
        return "done"
    if job is not None:
        return "running" if job.runs else "waiting"
    if element.job_id is None:
        return "not submitted"
    return "failed" if element.output is not None and Path(element.output).exists() else "cancelled"


def render_pipeline(status: PipelineStatus) -> list[str]:
    """Return a table of the stages, then what to do where one has failed."""
    lines = [status.pipeline, *as_table([HEADER, *(row(stage) for stage in status.stages)])]
    for stage in status.stages:
        for failure in stage.failed:
            lines.append(f"{failure.name} failed; the end of {failure.output}:")
            lines += [f"  {line}" for line in failure.last_lines]
    if status.has_failed:
        lines.append(
            f"mend it, then: sparse-pretrain launch slurm {status.file}  (what is done is not done again)"
        )
    if status.slurm_problem is not None:
        lines.append(f"SLURM was not asked: {status.slurm_problem}")
    return lines


def row(stage: StageStatus) -> tuple[str, ...]:
    """Return a stage's cells."""
    note = ""
    if stage.state == "waiting" and stage.waits_for:
        note = f"for {', '.join(stage.waits_for)}"
    elif stage.run is not None and stage.state not in ("done", stage.run.state):
        note = show_progress(stage.run)
    return (stage.name, stage.state, f"{stage.done}/{stage.total}", ",".join(stage.jobs) or "-", note)
