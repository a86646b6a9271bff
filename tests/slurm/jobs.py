"""Submit jobs to the cluster and look at them, always with a time-out."""

import re
from dataclasses import dataclass
from pathlib import Path

from launcher.lab import Lab
from launcher.lab.processes import command_line, parents

DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Job:
    """A job of the cluster."""

    lab: Lab
    number: str

    def field(self, name: str) -> str:
        shown = self.lab.run("scontrol", "show", "job", self.number)
        found = re.search(rf"(?:^|\s){name}=(\S*)", shown)
        assert found, shown
        return found.group(1)

    @property
    def state(self) -> str:
        return self.field("JobState")

    @property
    def restarts(self) -> int:
        return int(self.field("Restarts"))

    def wait_for(self, *states: str, seconds: float = 60) -> str:
        self.lab.wait_for(lambda: self.state in states, seconds, f"job {self.number} {' or '.join(states)}")
        return self.state

    def cancel(self, *options: str) -> None:
        self.lab.run("scancel", *options, self.number)


def submit(lab: Lab, *arguments: str) -> Job:
    """Submit with sbatch."""
    return Job(lab, lab.run("sbatch", "--parsable", *arguments).strip())


def tasks(lab: Lab, node: str) -> list[int]:
    """A node's ranks: what its steps started, without the batch script."""
    below, parent = lab.processes(node), parents()
    return [
        process
        for process in below
        if re.match(r"slurmstepd: \[\d+\.\d+\]", " ".join(command_line(parent.get(process, 0))))
    ]


def cancel_all(lab: Lab) -> None:
    """End all jobs and mend all nodes."""
    lab.run("scancel", "--full", f"--user={lab.plan.user}")
    for node in lab.nodes:
        lab.revive_node(node)
        if lab.plan.network is not None:
            lab.heal(node)
        if lab.node_states()[node].startswith(("down", "drain")):
            lab.resume(node)
    lab.wait_for(lambda: set(lab.node_states().values()) == {"idle"}, 60, "idle nodes")


def text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""
