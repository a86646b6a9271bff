"""Runs that are ended by one fault after another, and always started again by the same command."""

import random
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, step_folder
from tests.chaos import faults
from tests.chaos.disk import have_own_mounts, small_disk
from tests.chaos.judge import (
    Damaged,
    Expected,
    Tally,
    differences,
    expect,
    half_written,
    on_disk,
    whole_steps,
)
from tests.chaos.plan import Fault
from tests.chaos.strike import MEGABYTE, Pace, strike
from tests.chaos.watch import EndedError, HangError, Start, rows_written, train_command
from tests.tiny import read_rows, tiny_prepared

EVERY = 20
# A few million weights, so that a save takes long enough to be hit; steps stay fast.
SETTINGS = (
    "model.config.hidden_size=256",
    "model.config.intermediate_size=1024",
    "model.config.num_attention_heads=4",
    "batch.global_size=4",
    "batch.micro_size=2",
    f"checkpoint.every={EVERY}",
    "evaluation.every=50",
    "logging.histograms_every=0",
    "pruning.ramp_end=60",
    "pruning.end=80",
    "pruning.frequency=10",
)
# Room for the checkpoints that are kept, one that is written, and what the saver wants free before it begins.
DISK_BYTES = 256 * MEGABYTE
FINISHED, STOPPED, NO_ROOM = 0, 75, 2
# How often one fault is tried again because the run was finished before it struck.
ATTEMPTS = 4
TAIL_LINES = 25
# What a run prints when all is well.
PROGRESS = re.compile(r"prune(:| step) |.*; taking step-\d+ instead$")


@dataclass(frozen=True)
class Struck:
    """What became of one start.

    Attributes:
        what: the fault, for people; empty when it ended before.
        code: the launcher's exit code.
        printed: everything it printed.
        resumed: step of the checkpoint that it said it continues from.
        began: whether it came so far as to choose one.
        hung: why it had to be ended; None: it ended.
        seconds: how long it took.
    """

    what: str
    code: int
    printed: str
    resumed: int | None
    began: bool
    hung: str | None
    seconds: float

    @property
    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(f"    {line}" for line in self.printed.splitlines()[-TAIL_LINES:])


class Campaign:
    """Faults one after another, on as many runs as that takes.

    Attributes:
        tally: what went wrong so far.
        inside_saves: how many faults left a save half done.
    """

    def __init__(self, workdir: Path, nproc: int, steps: int, seed: int, say: Callable[[str], None]) -> None:
        """Work in the folder `workdir`, with runs of `steps` steps on `nproc` ranks; `say` is told of each fault."""
        self.tally = Tally()
        self.inside_saves = 0
        self._workdir = workdir
        self._command = train_command(nproc, SETTINGS, steps)
        self._random = random.Random(seed)
        self._say = say
        self._runs = 0

    def play(self, planned: Sequence[Fault]) -> Tally:
        """Inject all faults, finish the last run, and return what went wrong."""
        reference, pace = self._train_reference()
        self._next_run()
        for number, fault in enumerate(planned, start=1):
            self._one_fault(f"{number:3d}/{len(planned)}", fault, reference, pace)
        if self._start_once(None, pace).code == FINISHED:
            self._compare(reference)
        return self.tally

    def _one_fault(self, label: str, fault: Fault, reference: Path, pace: Pace) -> None:
        """Inject one fault; where the run was finished before it struck, into the next one."""
        for _ in range(ATTEMPTS):
            wrong = len(self.tally.lost)
            struck = self._start_once(fault, pace)
            if struck.code != FINISHED:
                break
            self._compare(reference)
        if len(self.tally.lost) > wrong:
            self._say(f"[{label}] {self._run.parent.name}: FAILED: {self.tally.lost[-1]}")
            # Kept for whoever looks into it.
            self._next_run()
            return
        origin = "" if struck.resumed is None else f" from step {struck.resumed}"
        origin = f"began{origin}" if struck.began else "had not begun"
        done = f"{struck.what or 'ended by itself'}{self._afterwards(fault)}"
        self._say(f"[{label}] {self._run.parent.name}: {origin}; {done} ({struck.seconds:.1f} s)")

    # --- runs ------------------------------------------------------------------------------------------

    def _next_run(self) -> None:
        self._runs += 1
        self._run = self._make_folder(f"run-{self._runs:03d}")
        self._damaged, self._printed, self._disk_was_full = Damaged(), "", False

    def _make_folder(self, name: str) -> Path:
        parent = self._workdir / name
        tiny_prepared(parent / "data")
        return parent / "run"

    def _train_reference(self) -> tuple[Path, Pace]:
        """Train without interruption, and measure where faults are to be aimed."""
        run = self._make_folder("reference")
        start = Start(self._command, run, run.parent / "printed.txt")
        try:
            # DeepSpeed may have to compile its extension first.
            start.until("a first step", lambda: rows_written(run) != (0, 0), patience=600.0)
            start_seconds = start.seconds()
            code = start.wait()
        except EndedError:
            code = start.wait()
        finally:
            start.end()
        if code != FINISHED:
            raise RuntimeError(f"the uninterrupted run failed with exit code {code}:\n{start.printed()}")
        pace = Pace(EVERY, start_seconds, mean(row["seconds"] for row in read_rows(run, "checkpoint")))
        self._say(
            f"reference: {start.seconds():.1f} s, {pace.start_seconds:.1f} s to its first step, "
            f"a save takes {pace.save_seconds:.2f} s"
        )
        return run, pace

    def _compare(self, reference: Path) -> None:
        """Compare a finished run with the uninterrupted one, and go on with a new one."""
        found = differences(self._run, reference)
        self.tally.corrupt.extend(f"{self._run.parent}: {difference}" for difference in found[:5])
        verdict = "DIFFERS from the uninterrupted run" if found else "equal to the uninterrupted run"
        self._say(f"{self._run.parent.name}: finished, {verdict}")
        if not found:
            shutil.rmtree(self._run.parent)
        self._next_run()

    # --- one start -----------------------------------------------------------------------------------------

    def _start_once(self, fault: Fault | None, pace: Pace) -> Struck:
        """Start the run, let a fault strike, wait until nothing of it runs, and judge."""
        expected = expect(self._run, self._damaged, self._printed, EVERY, self._disk_was_full)
        owner = read_owner(self._run / CHECKPOINTS)
        on_small_disk = fault is not None and fault.stop.startswith("disk") and have_own_mounts()
        with small_disk(self._run, DISK_BYTES) if on_small_disk else nullcontext():
            start = Start(self._command, self._run, self._run.parent / "printed.txt")
            what, hung = "", None
            try:
                if fault is not None:
                    what = strike(fault, start, pace, self._random)
                start.wait()
            except EndedError:
                start.wait()
            except HangError as error:
                hung = str(error)
            finally:
                start.end()
                # The disk has room again.
                (self._run / "filler").unlink(missing_ok=True)
        resumed = start.resumed_from()
        began = resumed is not None or read_owner(self._run / CHECKPOINTS) != owner
        if began:
            # One that was killed before it began leaves everything, and what was said last, as it was.
            self._printed = start.printed()
            self._disk_was_full = fault is not None and fault.stop.startswith("disk")
        code = start.launcher.returncode
        struck = Struck(what, code, start.printed(), resumed, began, hung, start.seconds())
        if what and not on_small_disk and start.saves_begun():
            self.inside_saves += 1
        self._judge(fault, struck, expected)
        return struck

    def _judge(self, fault: Fault | None, struck: Struck, expected: Expected) -> None:
        """Note what went wrong in a start, and in what it left."""
        name, tally = self._run.parent.name, self.tally
        if struck.hung is not None:
            tally.lost.append(f"{name}: {struck.hung}; it printed\n{struck.tail}")
            return
        if struck.resumed in expected.damaged:
            tally.corrupt.append(f"{name}: continued from step {struck.resumed}, which is damaged")
        elif struck.began and struck.resumed != expected.checkpoint:
            tally.lost.append(
                f"{name}: continued from step {struck.resumed}, not from step {expected.checkpoint}"
            )
        complaint = expected.complaint(EVERY)
        if struck.began and complaint is not None:
            tally.lost.append(f"{name}: {complaint}")
        tally.corrupt.extend(
            f"{name}: half a checkpoint: {problem}" for problem in half_written(self._run, self._damaged)
        )
        if not struck.what and struck.code not in (FINISHED, STOPPED):
            tally.lost.append(f"{name}: failed by itself, exit code {struck.code}; it printed\n{struck.tail}")
        if struck.what and fault is not None and fault.stop.startswith("disk"):
            self._judge_full_disk(struck)

    def _judge_full_disk(self, struck: Struck) -> None:
        """A full disk is told in one line, with the exit code of what the user can mend."""
        if struck.code == FINISHED:
            # It was filled too late: what was left to save still found room.
            return
        lines = [line for line in struck.printed.splitlines() if not PROGRESS.match(line)]
        if struck.code != NO_ROOM or len(lines) != 1:
            self.tally.untidy.append(
                f"{self._run.parent.name}: full disk: exit code {struck.code}, {len(lines)} lines:\n{struck.tail}"
            )

    def _afterwards(self, fault: Fault) -> str:
        """Do to the run's folder, while nothing runs, what the fault wants; return it for people."""
        whole = whole_steps(self._run, self._damaged)
        newest = step_folder(self._run / CHECKPOINTS, whole[-1]) if whole else None
        if fault.after == "nothing" or newest is None or on_disk(self._run)[whole[-1]] != newest:
            return ""
        if fault.after == "partial":
            faults.leave_partial(newest, self._random)
            return "; left half a save"
        if fault.after == "replaced":
            faults.leave_replaced(newest)
            return f"; left {newest.name} as if it were just being replaced"
        if fault.after == "doubled":
            faults.leave_both(newest)
            return f"; left a replaced one beside {newest.name}"
        if len(whole) < 2:
            # With none whole there is nothing to continue from, and the program says so.
            return ""
        name, unusable = faults.damage(newest, fault.after, self._random)
        if unusable:
            self._damaged.add(newest)
        return f"; then {fault.after} {name} of {newest.name}{'' if unusable else ' (harmless)'}"
