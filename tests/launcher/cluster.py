"""What an sbatch script finds on a node, without a node: fake programs that write down how they were called."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from launcher.job import Job

ROOT = Path(__file__).resolve().parents[2]
FAKES = {
    # Its own options first, then the rank's command.
    "srun": 'while [[ "$1" == --* ]]; do shift; done\ncat "$FAKES/srun-says" >&2 2>/dev/null\n"$@"',
    "scontrol": '[[ "$1" != show ]] || printf "n1\\nn2\\n"',
    "sbatch": 'exit "$(cat "$FAKES/sbatch-code" 2>/dev/null || echo 0)"',
    "module": "true",
    "apptainer": 'shift; while [[ "$1" == --* ]]; do [[ "$1" != --bind ]] || shift; shift; done\nshift; "$@"',
    "sparse-pretrain": 'exit "$(cat "$FAKES/code" 2>/dev/null || echo 0)"',
}
# In place of launcher.restart, where only the shell's part is looked at.
SILENT_PYTHON = "true"
REAL_PYTHON = f'exec {sys.executable} "$@"'


@dataclass
class FakeNode:
    """The first node of a job: a folder of programs, a run folder, and how often SLURM has restarted the job."""

    folder: Path
    python: str = REAL_PYTHON
    job_id: str = "77"
    restarts: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bin = self.folder / "bin"
        self.run = self.folder / "run"
        self.output = self.folder / "job.out"
        self.bin.mkdir()
        for name, body in {**FAKES, "python3": self.python}.items():
            note = f'printf "%s\\0" $(($# + 1)) {name} "$@" >> "$FAKES/calls"'
            text = f"#!/usr/bin/env bash\n{note}\n{body}\n"
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def job(self, **changes: object) -> Job:
        """Return a job on two nodes whose programs are the fake ones."""
        settings: dict[str, object] = {
            "name": "test",
            "recipe": "train-tiny",
            "overrides": (),
            "output": self.run,
            "folder": self.folder,
            "nodes": 2,
            "ranks_per_node": 1,
            "time": "1:00:00",
            "steps": 100,
            "bin": str(self.bin),
        }
        return Job(**{**settings, **changes})  # type: ignore[arg-type]

    def start(self, script: str, *arguments: str) -> int:
        """Run a script as SLURM does; return its exit code. What it prints is appended to `output`."""
        path = self.folder / "slurm_script"
        path.write_text(script, encoding="utf-8")
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM_")},
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FAKES": str(self.folder),
            "SLURM_JOB_ID": self.job_id,
            "SLURM_RESTART_COUNT": str(self.restarts),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_PARTITION": "main",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_SUBMIT_DIR": str(self.folder),
            **self.environment,
        }
        (self.folder / "calls").unlink(missing_ok=True)
        with self.output.open("ab") as output:
            done = subprocess.run(
                ["bash", str(path), *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=60,
                check=False,
            )
        return done.returncode

    def end_ranks_with(self, code: int, step: int | None = None, node: str | None = None) -> None:
        """Choose how the ranks of the coming starts end: exit code, step reported, node of the first to fail."""
        (self.folder / "code").write_text(str(code))
        (self.folder / "srun-says").write_text(
            f"srun: error: {node}: task 1: Exited with exit code {code}\n" if node else ""
        )
        if step is not None:
            progress = self.run / "progress" / "rank-0.json"
            progress.parent.mkdir(parents=True, exist_ok=True)
            progress.write_text(json.dumps({"step": step, "time": 4e9}))

    def calls(self, program: str) -> list[list[str]]:
        """Return the arguments of every call of a program during the last start, in order."""
        return [arguments for name, *arguments in self.all_calls() if name == program]

    def all_calls(self) -> list[list[str]]:
        """Return every call of the last start, the program's name first."""
        path = self.folder / "calls"
        parts = path.read_bytes().decode().split("\0")[:-1] if path.is_file() else []
        found = []
        while parts:
            # How many words a call had, then the words: whatever is in them, they stay apart.
            count = int(parts[0])
            found.append(parts[1 : count + 1])
            parts = parts[count + 1 :]
        return found

    def requeues(self) -> int:
        """Return how often the last start asked for a requeue."""
        return self.calls("scontrol").count(["requeue", self.job_id])

    def record(self, event: str) -> list[dict[str, object]]:
        """Return the entries of restarts.jsonl of one kind."""
        path = self.run / "slurm" / "restarts.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [entry for entry in entries if entry["event"] == event]


def directives(script: str) -> dict[str, str | None]:
    """Read a script's #SBATCH options as sbatch does: up to the first line that is no comment.

    Written after `_get_next_opt_batch_script` of SLURM 22.05: quotes of both kinds, a backslash takes the next
    letter as it is (in quotes too), an unquoted # ends the line.
    """
    found: dict[str, str | None] = {}
    for line in script.split("\n"):
        if line.strip() and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            for word in words(line.removeprefix("#SBATCH")):
                name, equals, value = word.partition("=")
                found[name] = value if equals else None
    return found


def words(text: str) -> list[str]:
    """Split the rest of a #SBATCH line into words."""
    found: list[str] = []
    word, quote, escaped, begun = "", "", False, False
    for letter in text:
        if escaped:
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = begun = True
        elif quote:
            word, quote = (word, "") if letter == quote else (word + letter, quote)
        elif letter in "\"'":
            quote, begun = letter, True
        elif letter == "#":
            break
        elif letter in " \t\n\v\f\r":
            found, word, begun = ([*found, word] if begun else found), "", False
        else:
            word, begun = word + letter, True
    assert not quote, f"sbatch would say: unmatched quote in {text}"
    return [*found, word] if begun else found
