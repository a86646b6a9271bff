"""`launch cancel` of a pipeline: what waits is cancelled, trainings save and leave, commands are ended."""

from collections.abc import Mapping
from pathlib import Path

from launcher.pipeline.record import read_record
from launcher.query import SlurmError, ask, find_my_jobs
from launcher.watch.cancel import Say, cancel
from launcher.watch.folders import is_run
from sparse_pretrain.errors import FailedError, UserError


def cancel_pipeline(
    output: Path, say: Say, now: bool, wait: float, environment: Mapping[str, str] | None = None
) -> None:
    """Stop all stages of a pipeline; the same `launch slurm` goes on with what is not done.

    Args:
        output: the pipeline's folder.
        say: takes lines for the user.
        now: kill trainings instead of letting them save.
        wait: seconds for each training to save and end.
        environment: for SLURM's commands.

    Raises:
        UserError: no pipeline was launched there.
        FailedError: SLURM does not answer, or a training still runs after `wait` seconds.
    """
    record = read_record(output)
    if record is None:
        raise UserError(f"{output}: no pipeline was launched there (no pipeline.json)")
    try:
        jobs = {job.id: job for job in find_my_jobs(environment)}
        # The last first: what waits for a job that is cancelled would be cancelled by SLURM, in its own time.
        for name, stage in reversed(list(record.stages.items())):
            if stage.run is not None:
                continue
            living = [element.job_id for element in stage.elements if element.job_id in jobs]
            if living:
                ask(
                    ["scancel", *(number for number in living if number is not None)], environment=environment
                )
                say(f"{name}: cancelled job {', '.join(str(number) for number in living)}")
    except SlurmError as error:
        raise FailedError(f"{output}: {error}; the pipeline was not stopped for sure") from None
    for stage in reversed(list(record.stages.values())):
        if stage.run is not None and is_run(Path(stage.run)):
            cancel(Path(stage.run), say, now, wait, environment)
