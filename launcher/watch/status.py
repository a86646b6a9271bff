"""The state of a run, from what its ranks write and what SLURM says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.query import UNKNOWN, Job, SlurmError, find_jobs, find_nodes
from launcher.watch.folders import (
    Saved,
    Submitted,
    last_line,
    newest_checkpoint,
    rank_log,
    read_submitted,
)
from launcher.watch.ranks import Ranks, read_ranks
from launcher.watch.stuck import SILENT_SECONDS, Behind, find_behind, is_stuck, standstill
from sparse_pretrain.telemetry.phases import Phase

# Building models and compiling DeepSpeed's extension take minutes at a first start.
PATIENCE_SECONDS = 600.0

# Of jobs that ended long ago SLURM knows nothing, and a run may have had hundreds.
LONGEST_CHAIN = 50


@dataclass(frozen=True)
class Blame:
    """A rank that holds up a stuck run: its number, machine, in what it differs, and its log's last line."""

    rank: int
    host: str | None
    why: str
    last_line: str | None


@dataclass(frozen=True)
class RunStatus:
    """A run, for tables and for scripts.

    Attributes:
        run: its folder.
        state: waiting, starting, training, saving, evaluating, stuck, silent (nobody has written for a minute),
            ending, finished, stopped, cancelled, failed, died (a process is gone without a word), unknown.
        detail: one line about the state; None where it speaks for itself.
        step, steps: done, and of the whole run; None before the first start.
        loss, sparsity, tokens_per_second: the newest, None where the run has none.
        seconds_left: at this start's pace; None unless it trains.
        starts: how often the run was started; None before training began.
        ranks, ranks_expected: how many have arrived in the newest start, and how many there should be.
        hosts: machines of the newest start.
        checkpoint, checkpoint_step, checkpoint_age: the newest one's name, step and age in seconds.
        job_id, job_state, job_reason: by SLURM; None without.
        bad_nodes: nodes of the job that are not well, with SLURM's state and reason.
        behind: the ranks that hold up a stuck run.
        slurm_problem: why SLURM could not be asked.
    """

    run: str
    state: str
    detail: str | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    sparsity: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    starts: int | None = None
    ranks: int = 0
    ranks_expected: int = 0
    hosts: tuple[str, ...] = ()
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    job_id: str | None = None
    job_state: str | None = None
    job_reason: str | None = None
    bad_nodes: tuple[str, ...] = ()
    behind: tuple[Blame, ...] = field(default=())
    slurm_problem: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether ranks are, or may be, at work."""
        return self.state in ("starting", "training", "saving", "evaluating", "stuck", "silent", "ending")


def describe_runs(
    folders: Sequence[Path],
    now: float,
    patience: float = PATIENCE_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> list[RunStatus]:
    """Return the status of runs; SLURM is asked once for all of them, and only when one has a job.

    Args:
        folders: of the runs.
        now: seconds since 1970.
        patience: seconds without a step after which a run counts as stuck.
        environment: for SLURM's commands.
    """
    looks = [(folder, read_ranks(folder)) for folder in folders]
    numbers = {folder: jobs_of(ranks, read_submitted(folder)) for folder, ranks in looks}
    jobs: Mapping[str, Job] = {}
    problem = None
    try:
        every = dict.fromkeys(number for chain in numbers.values() for number in chain)
        jobs = find_jobs(list(every), environment)
    except SlurmError as error:
        problem = str(error)
    described = []
    for folder, ranks in looks:
        chain = numbers[folder]
        job = choose_job([jobs[number] for number in chain if number in jobs])
        described.append(
            describe_run(
                folder,
                ranks,
                job,
                newest_checkpoint(folder),
                now,
                patience,
                bad_nodes=find_bad_nodes(job, environment),
                slurm_problem=problem if chain else None,
            )
        )
    return described


def jobs_of(ranks: Ranks, submitted: Submitted | None) -> tuple[str, ...]:
    """Return the numbers of a run's newest jobs: those that were submitted, or else what its ranks run in."""
    if submitted is not None:
        return submitted.chain[-LONGEST_CHAIN:]
    # `launch local` inside of somebody's allocation is not that job's run: job_step is of srun's tasks only.
    found = next((rank.job_id for rank in ranks.arrived if rank.job_step is not None), None)
    return () if found is None else (found,)


def choose_job(chain: Sequence[Job]) -> Job | None:
    """Return the job that says most about a run: it runs, waits next, had nodes last, or was submitted last."""
    running = [job for job in chain if job.runs]
    waiting = [job for job in chain if job.waits]
    # One that was cancelled while it waited says nothing about the one that ran before it.
    started = [job for job in reversed(chain) if job.nodes]
    return next(iter([*running, *waiting, *started, *reversed(chain)]), None)


def find_bad_nodes(job: Job | None, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the nodes of a job that are not well, each with state and reason."""
    if job is None or not job.nodes or not job.runs:
        return ()
    try:
        nodes = find_nodes(job.nodes, environment)
    except SlurmError:
        return ()
    return tuple(
        f"{node.name}: {node.state}{f' ({node.reason})' if node.reason else ''}"
        for node in nodes
        if not node.is_well
    )


def describe_run(
    folder: Path,
    ranks: Ranks,
    job: Job | None,
    saved: Saved | None,
    now: float,
    patience: float = PATIENCE_SECONDS,
    bad_nodes: tuple[str, ...] = (),
    slurm_problem: str | None = None,
) -> RunStatus:
    """Return the status of one run."""
    state, detail = find_state(ranks, job, now, patience)
    first = ranks.first or (ranks.arrived[0] if ranks.arrived else None)
    training = state in (Phase.TRAINING, Phase.SAVING, Phase.EVALUATING)
    left = None
    if training and first is not None and first.step_seconds is not None:
        left = max(0, first.steps - first.step) * first.step_seconds
    stuck = find_behind(ranks) if state in ("stuck", "silent") else []
    return RunStatus(
        run=str(folder),
        state=state,
        detail=detail,
        step=first.step if first is not None else None,
        steps=first.steps if first is not None else None,
        loss=first.loss if first is not None else None,
        sparsity=first.sparsity if first is not None else None,
        tokens_per_second=first.tokens_per_second if first is not None else None,
        seconds_left=left,
        starts=first.start if first is not None else None,
        ranks=len(ranks.arrived),
        ranks_expected=len(ranks.arrived) + len(ranks.missing),
        hosts=tuple(dict.fromkeys(rank.host for rank in ranks.arrived)),
        checkpoint=saved.name if saved is not None else None,
        checkpoint_step=saved.step if saved is not None else None,
        checkpoint_age=max(0.0, now - saved.written) if saved is not None else None,
        job_id=job.id if job is not None else None,
        job_state=job.state if job is not None else None,
        job_reason=job.reason if job is not None else None,
        bad_nodes=bad_nodes,
        behind=tuple(blame(folder, one) for one in stuck),
        slurm_problem=slurm_problem,
    )


def blame(folder: Path, behind: Behind) -> Blame:
    """Add the last line of the rank's log."""
    return Blame(behind.rank, behind.host, behind.why, last_line(rank_log(folder, behind.rank)))


def find_state(ranks: Ranks, job: Job | None, now: float, patience: float) -> tuple[str, str | None]:
    """Return a run's state, and a line about it.

    Args:
        ranks: of its newest start.
        job: as SLURM says; None without a job, or when SLURM did not answer.
        now: seconds since 1970.
        patience: seconds without a step after which it counts as stuck.
    """
    if job is not None and job.waits:
        return "waiting", f"job {job.id} {job.state.lower()}" + (f": {job.reason}" if job.reason else "")
    known = job is not None and job.state != UNKNOWN
    foreign = known and job is not None and any(rank.job_id not in (None, job.id) for rank in ranks.arrived)
    if not ranks.arrived or foreign:
        return before_the_ranks(job)
    if not ranks.active:
        return ended(ranks, job)
    if job is not None and not job.runs and job.state != UNKNOWN:
        if job.state == "CANCELLED":
            return "cancelled", f"job {job.id}; the same command continues from the newest checkpoint"
        return "died", f"job {job.id} is {job.state.lower()}, and its ranks never said that they ended"
    dead = [rank for rank in ranks.active if rank.is_here and not rank.lives_here]
    if dead:
        return "died", f"rank {dead[0].rank}: process {dead[0].process} on {dead[0].host} is gone"
    failed = [rank for rank in ranks.arrived if rank.phase is Phase.FAILED]
    if failed:
        return "ending", f"rank {failed[0].rank} on {failed[0].host} failed; the others are being ended"
    quiet = now - max(rank.time for rank in ranks.active)
    if quiet > SILENT_SECONDS:
        return "silent", f"no rank has written for {quiet:.0f} s"
    if is_stuck(ranks, now, patience):
        return "stuck", f"no step for {standstill(ranks, now) / 60:.0f} min"
    if ranks.missing:
        return (
            "starting",
            f"{len(ranks.missing)} of {len(ranks.arrived) + len(ranks.missing)} ranks are missing",
        )
    return str((ranks.first or ranks.active[0]).phase), None


def before_the_ranks(job: Job | None) -> tuple[str, str | None]:
    """Return the state of a run none of whose ranks has written."""
    if job is None:
        return "unknown", "no rank has written"
    if job.runs:
        return "starting", f"job {job.id} runs, no rank has written yet"
    if job.state == UNKNOWN:
        return "unknown", f"SLURM does not know job {job.id} any more, and no rank has written"
    return "failed", f"job {job.id} is {job.state.lower()}, and no rank has written" + (
        f" ({job.reason})" if job.reason else ""
    )


def ended(ranks: Ranks, job: Job | None) -> tuple[str, str | None]:
    """Return the state of a run all of whose ranks said that they ended."""
    phases = [rank.phase for rank in ranks.arrived]
    if job is not None and job.runs:
        return "ending", f"job {job.id} is still {job.state.lower()}"
    failed = [rank for rank in ranks.arrived if rank.phase is Phase.FAILED]
    if failed:
        return "failed", f"rank {failed[0].rank} on {failed[0].host}"
    if all(phase is Phase.FINISHED for phase in phases):
        return "finished", None
    return "stopped", "saved; the same command continues"
