"""What this machine has and allows: SLURM's programs, namespaces, names."""

import os
import shutil

from launcher.lab.network import run_quietly
from launcher.lab.plan import Plan
from launcher.lab.scripts import AS_ROOT, AS_USER
from sparse_pretrain.errors import UserError

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
# Debian keeps daemons where an ordinary user's PATH does not lead.
DAEMON_FOLDERS = "/usr/sbin:/sbin"


def search_path(path: str | None) -> str:
    """Return a PATH with the folders of daemons behind what it has."""
    return os.pathsep.join([path or os.defpath, DAEMON_FOLDERS])


def missing_programs() -> list[str]:
    """Return what of SLURM and munge is not installed."""
    path = search_path(os.environ.get("PATH"))
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def find_isolation() -> tuple[str, ...]:
    """Return the command that gives a process its own host name and mounts, empty when that is forbidden."""
    command = AS_ROOT if os.getuid() == 0 else AS_USER
    probe = [*command, "sh", "-c", "mount --bind /etc/hosts /etc/hosts && hostname node1"]
    return command if run_quietly(probe).returncode == 0 else ()


def refuse_unknown_names(plan: Plan) -> None:
    """Make sure that the nodes' names lead to this machine.

    Raises:
        UserError: they don't.
    """
    for node in plan.node_names:
        if run_quietly(["getent", "hosts", node]).returncode != 0:
            raise UserError(
                f"/etc/hosts: {node} is missing, and this machine gives processes no hosts file of their own; add "
                f"the line `127.0.0.1 {' '.join(plan.node_names)}`"
            )
