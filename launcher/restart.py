"""Whether a job that has ended starts again: asked by the sbatch script, on its first node.

    python3 -m launcher.restart where RECIPE [key=value ...]   the recipe's steps and run folder, a line each
    python3 -m launcher.restart start RUN --steps N            notes a start; `go`, `done` or `given-up`
    python3 -m launcher.restart end RUN --code N …             `requeue [NODES]` (exit 0) or `give-up` (exit 1)

Answers go to stdout, reasons to stderr, both into `RUN/slurm/restarts.jsonl`. Light: no torch, it starts at once.
"""

import argparse
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launcher.job import SLURM_FOLDER
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, saved_steps
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError

RECORD = "restarts.jsonl"
SUBMITTED = "jobs.jsonl"
FINISHED, MISTAKE, STOPPED = 0, 2, 75
# Died of a signal that asks to save and leave (the time limit's, a preemption's): it came while Python
# started, before anybody listened.
PREEMPTED_EARLY = 128 + signal.SIGTERM
STOPPED_TOO_EARLY = (128 + signal.SIGUSR2, PREEMPTED_EARLY)
# A job that is stopped so often before it got a step further never will: its time limit is too short.
STANDSTILLS = 3
# What srun says first names the task that ended first; the others may only have lost it.
SRUN_ERROR = re.compile(r"^srun: error: (\S+): tasks? [\d,-]+: ", re.MULTILINE)
START_LINE = re.compile(r"^job \S+, start \d+: ", re.MULTILINE)
LOG_TAIL_BYTES = 4 * 2**20
METRICS_TAIL_BYTES = 2**16

Verdict = Literal["finished", "requeue", "give-up"]
Answer = Literal["go", "done", "given-up"]


@dataclass(frozen=True)
class Policy:
    """When a crashed job starts again; see `launcher.site.RestartPolicy`."""

    max_restarts: int
    same_step_failures: int
    exclude_after: int


@dataclass(frozen=True)
class Attempt:
    """How one start of a job ended: srun's exit code, the step it had reached, the node that failed first."""

    code: int
    step: int
    node: str | None = None

    @property
    def crashed(self) -> bool:
        """True when it neither finished, nor saved and left, nor met a mistake of the user's."""
        return self.code not in (FINISHED, MISTAKE, STOPPED, *STOPPED_TOO_EARLY)


@dataclass(frozen=True)
class Decision:
    """What happens to a job, why, and which nodes caused failures often enough to be left out."""

    verdict: Verdict
    reason: str
    excluded: tuple[str, ...] = ()


def decide(policy: Policy, attempts: Sequence[Attempt]) -> Decision:
    """Decide what happens after the last of a job's attempts, oldest first."""
    last = attempts[-1]
    if last.code == FINISHED:
        return Decision("finished", "finished")
    if last.code == MISTAKE:
        return Decision("give-up", "a mistake in the input (see above): starting again would not mend it")
    standing = failures_in_a_row(attempts)
    if not last.crashed:
        # A preemption says nothing about the time limit.
        if standing >= STANDSTILLS and last.code != PREEMPTED_EARLY:
            return Decision(
                "give-up",
                f"stopped {standing} times in a row at step {last.step}: a longer time limit, or none, would help",
            )
        how = "and saved" if last.code == STOPPED else "as it started"
        return Decision("requeue", f"stopped at step {last.step} {how}", excluded_nodes(policy, attempts))
    crashes = sum(attempt.crashed for attempt in attempts)
    where = f", first on {last.node}" if last.node else ""
    what = f"failed at step {last.step} (exit code {last.code}{where})"
    if crashes > policy.max_restarts:
        return Decision("give-up", f"{what}; this job has crashed {crashes} times")
    fresh = set(excluded_nodes(policy, attempts)) - set(excluded_nodes(policy, attempts[:-1]))
    # One node caused all of them, and the next start is the first without it.
    one_node = fresh and all(attempt.node in fresh for attempt in attempts[-standing:])
    if standing >= policy.same_step_failures and not one_node:
        row = f", as {standing} starts in a row" if standing > 1 else ""
        return Decision("give-up", f"{what}{row}: it would do so again")
    return Decision(
        "requeue",
        f"{what}; restart {crashes} of {policy.max_restarts}",
        excluded_nodes(policy, attempts),
    )


def failures_in_a_row(attempts: Sequence[Attempt]) -> int:
    """Return how many of the last attempts ended at the last one's step, in the same manner."""
    last, count = attempts[-1], 0
    for attempt in reversed(attempts):
        if (attempt.step, attempt.crashed) != (last.step, last.crashed):
            break
        count += 1
    return count


def excluded_nodes(policy: Policy, attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Return the nodes that caused `exclude_after` crashes or more, sorted; none where the policy says 0."""
    if not policy.exclude_after:
        return ()
    caused = Counter(attempt.node for attempt in attempts if attempt.crashed and attempt.node)
    return tuple(sorted(node for node, count in caused.items() if count >= policy.exclude_after))


def first_failing_node(output: str) -> str | None:
    """Return the node of the task that ended badly first, by srun's own lines since the last start.

    None when srun named none, or several at once.
    """
    starts = [match.end() for match in START_LINE.finditer(output)]
    found = SRUN_ERROR.search(output, starts[-1] if starts else 0)
    # A list such as node[1-2] blames nobody.
    return found.group(1) if found and not set("[],") & set(found.group(1)) else None


def reached_step(run: Path, since: float) -> int:
    """Return the last step that rank 0 reported since `since` (unix time), else the newest checkpoint's."""
    reports = [*read_lines(run / "progress" / "rank-0.json"), *last_metrics(run / "metrics.jsonl")]
    steps = [
        int(report["step"])
        for report in reports
        if isinstance(report.get("step"), int)
        and isinstance(report.get("time"), int | float)
        and report["time"] >= since
    ]
    return max(steps, default=newest_step(run))


def last_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the newest rows of the metrics; a rank's progress file is up to some seconds behind them."""
    return parse_lines(tail(path, METRICS_TAIL_BYTES))


def newest_step(run: Path) -> int:
    """Return the newest checkpoint's step, 0 without one."""
    return max(saved_steps(run / CHECKPOINTS), default=0)


def note_start(run: Path, steps: int, job: str, restart: int, now: float) -> tuple[Answer, str | None]:
    """Note that a job starts; return whether it shall, and why not.

    A restart that this record did not ask for was SLURM's own: a preemption, or a node was lost. It is noted too.

    Args:
        run: the run folder.
        steps: the recipe's.
        job: SLURM's number of the job.
        restart: SLURM_RESTART_COUNT: how often the job has been requeued, by whomever.
        now: unix time.
    """
    earlier = read_lines(run / SLURM_FOLDER / RECORD)
    mine = [entry for entry in earlier if entry.get("job_id") == job]
    explained = sum(entry.get("verdict") == "requeue" or entry.get("event") == "lost" for entry in mine)
    if restart > explained:
        reason = "requeued by SLURM or by hand: preempted, or a node was lost"
        append(run, {"event": "lost", "time": now, "job_id": job, "restart": restart, "reason": reason})
    answer, why = whether_to_start(run, steps, job, earlier)
    event = "start" if answer == "go" else "skip"
    append(run, {"event": event, "time": now, "job_id": job, "restart": restart, "reason": why})
    return answer, why


def whether_to_start(
    run: Path, steps: int, job: str, record: Sequence[Mapping[str, Any]]
) -> tuple[Answer, str | None]:
    """Return whether a job shall run, and why not: all is done, or an earlier job gave up while it waited."""
    if 0 < steps <= newest_step(run):
        return "done", f"all {steps} steps are done"
    submitted = [
        entry["submitted"]
        for entry in read_lines(run / SLURM_FOLDER / SUBMITTED)
        if entry.get("job_id") == job
    ]
    ends = [entry for entry in record if entry.get("event") == "end"]
    if not submitted or not ends:
        return "go", None
    last = ends[-1]
    gave_up = last.get("verdict") == "give-up" and last.get("job_id") != job
    if gave_up and last["time"] > submitted[-1]:
        why = (
            f"job {last['job_id']} gave up while this one waited: {last['reason']}; mend it and submit again"
        )
        return "given-up", why
    return "go", None


def is_superseded(run: Path, job: str, restart: int) -> bool:
    """Say whether a later start of this job has begun: its node was cut off, and SLURM gave the job to others.

    Requeued by the old start's script, the job would be taken from the new one.
    """
    starts = (entry for entry in read_lines(run / SLURM_FOLDER / RECORD) if entry.get("event") == "start")
    return any(entry.get("job_id") == job and entry.get("restart", 0) > restart for entry in starts)


def note_end(run: Path, attempt: Attempt, policy: Policy, job: str, now: float) -> Decision:
    """Note how a start ended, decide what follows, and note that too."""
    entries = read_lines(run / SLURM_FOLDER / RECORD)
    earlier = [
        Attempt(entry["code"], entry["step"], entry.get("node"))
        for entry in entries
        if entry.get("event") == "end" and entry.get("job_id") == job
    ]
    decision = decide(policy, [*earlier, attempt])
    append(
        run,
        {
            "event": "end",
            "time": now,
            "job_id": job,
            "code": attempt.code,
            "step": attempt.step,
            "node": attempt.node,
            "verdict": decision.verdict,
            "reason": decision.reason,
            "excluded": list(decision.excluded),
        },
    )
    return decision


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; a line that a crash cut off is left out."""
    return parse_lines(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Return the objects of JSON lines; what is none is left out."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def append(run: Path, entry: Mapping[str, Any], name: str = RECORD) -> None:
    """Append one line to a record of the run; a disk that is full must not decide over the job."""
    folder = run / SLURM_FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / name).open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(entry) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        say(f"{folder / name}: not written ({error})")


def tail(path: Path, size: int = LOG_TAIL_BYTES) -> str:
    """Return the last `size` bytes of a file; nothing when it cannot be read."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - size))
            return handle.read().decode(errors="replace")
    except OSError:
        return ""


def say(message: str) -> None:
    """Print a reason into the job's output."""
    print(message, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python3 -m launcher.restart", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start")
    start.add_argument("run", type=Path)
    start.add_argument("--steps", type=int, default=0)
    end = commands.add_parser("end")
    end.add_argument("run", type=Path)
    end.add_argument("--code", type=int, required=True)
    end.add_argument("--since", type=float, default=0.0)
    end.add_argument("--log", type=Path, default=Path(os.devnull))
    end.add_argument("--max-restarts", type=int, default=3)
    end.add_argument("--same-step-failures", type=int, default=2)
    end.add_argument("--exclude-after", type=int, default=2)
    end.add_argument("--excluded", default="")
    return parser.parse_args(arguments)


def print_where(words: Sequence[str]) -> int:
    """Print the steps and run folder of a recipe; its options of `train` don't matter for that."""
    recipe, *overrides = [word for word in words if not word.startswith("--")]
    settings = load_recipe(recipe, overrides, TrainRecipe)
    print(settings.steps)
    print(settings.output.absolute())
    return 0


def answer(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Do what the command line says; return the exit code."""
    if arguments[:1] == ["where"]:
        return print_where(arguments[1:])
    options = parse(arguments)
    job = environment.get("SLURM_JOB_ID", "")
    restart = int(environment.get("SLURM_RESTART_COUNT") or 0)
    if options.command == "start":
        whether, why = note_start(options.run, options.steps, job, restart, time.time())
        if why is not None:
            say(f"job {job}: {why}")
        print(whether)
        return 0
    if is_superseded(options.run, job, restart):
        say(f"job {job}: SLURM has started it anew elsewhere: this start leaves it alone")
        print("give-up")
        return 1
    attempt = Attempt(options.code, reached_step(options.run, options.since))
    if attempt.crashed:
        attempt = replace(attempt, node=first_failing_node(tail(options.log)))
    policy = Policy(options.max_restarts, options.same_step_failures, options.exclude_after)
    decision = note_end(options.run, attempt, policy, job, time.time())
    # sbatch's list is replaced, not extended: the site's own nodes stay in it.
    fresh = decision.excluded
    nodes = ",".join([*filter(None, [options.excluded]), *fresh]) if fresh else ""
    say(f"job {job}: {decision.reason}" + (f"; from now on without {','.join(fresh)}" if fresh else ""))
    print(f"{decision.verdict} {nodes}".rstrip())
    return 1 if decision.verdict == "give-up" else 0


def main() -> int:
    """Run the command; a user's mistake is one line and exit code 2."""
    try:
        return answer(sys.argv[1:], os.environ)
    except UserError as error:
        say(str(error))
        return MISTAKE


if __name__ == "__main__":
    raise SystemExit(main())
