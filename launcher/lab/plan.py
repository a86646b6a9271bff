"""What a cluster on one machine is: names, addresses and ports, decided before anything is started."""

import json
import os
import platform
import pwd
import random
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, write_text

PLAN = "lab.json"
# The path of a socket has at most 107 characters, and SLURM and munge make theirs inside the folder.
LONGEST_FOLDER = 70
MOST_NODES = 64
MEMORY_MB = 4000
# Below 20000, where jobs have their rendezvous, and below 32768, where Linux hands ports out to anyone.
PORTS = range(12_000, 19_900)
# Clusters that are up at the same time must not give their jobs the same number, hence the same rendezvous.
FIRST_JOBS = range(1_000, 60_000, 100)


@dataclass(frozen=True)
class Plan:
    """A cluster: everything that its configuration is written from.

    Attributes:
        folder: where configuration, logs, sockets and process ids lie; absolute.
        user: who runs the daemons and may submit.
        controller_host: this machine's name.
        nodes: number of nodes, named node1, node2, ...
        cpus: CPUs that each node says it has, however many there are.
        gpus: GPUs that each node says it has; terminals stand in for them, nothing computes there.
        port: the controller's TCP port; node N listens on `port` + N.
        first_job: number of the first job.
        network: with a network namespace per node, the third number of its addresses; else None.
    """

    folder: Path
    user: str
    controller_host: str
    nodes: int
    cpus: int
    gpus: int
    port: int
    first_job: int
    network: int | None = None

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes, in order."""
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @property
    def controller_address(self) -> str:
        """Address of the controller, as nodes and users reach it."""
        return "127.0.0.1" if self.network is None else f"10.213.{self.network}.1"

    def number(self, node: str) -> int:
        """Return a node's number, from 1.

        Raises:
            UserError: there is no such node.
        """
        if node not in self.node_names:
            raise UserError(f"{node}: no such node; there are {', '.join(self.node_names)}")
        return self.node_names.index(node) + 1

    def address(self, node: str) -> str:
        """Return a node's address."""
        return "127.0.0.1" if self.network is None else f"10.213.{self.network}.{self.number(node) + 10}"

    @property
    def configuration(self) -> Path:
        """The slurm.conf, which SLURM_CONF has to name."""
        return self.folder / "slurm.conf"

    @property
    def hosts(self) -> Path:
        """The hosts file that the nodes see as /etc/hosts."""
        return self.folder / "hosts"

    @property
    def munge_socket(self) -> Path:
        """Where munge, which vouches for users, answers."""
        return self.folder / "munge" / "socket"

    def spool(self, node: str) -> Path:
        """Return the folder for a node's own files."""
        return self.folder / "spool" / node

    def log(self, name: str) -> Path:
        """Return the log of a node, of `slurmctld` or of `munged`."""
        return self.folder / "log" / f"{name}.log"

    def process_file(self, name: str) -> Path:
        """Return the file with the process id of what keeps a node's, or the controller's, processes."""
        return self.folder / "processes" / f"{name}.pid"


def make_plan(folder: Path, nodes: int, cpus: int, gpus: int, network: int | None) -> Plan:
    """Plan a cluster in `folder`, with ports that are free.

    Raises:
        UserError: impossible numbers, or a folder whose path is too long for sockets.
    """
    for key, value, most in (("nodes", nodes, MOST_NODES), ("cpus", cpus, 1024)):
        if not 1 <= value <= most:
            raise UserError(f"{key} = {value}: must be between 1 and {most}")
    if not 0 <= gpus <= 16:
        raise UserError(f"gpus = {gpus}: must be between 0 and 16")
    folder = folder.resolve()
    if len(str(folder)) > LONGEST_FOLDER or any(character.isspace() for character in str(folder)):
        raise UserError(
            f"{folder}: SLURM's sockets need a path without spaces and of at most {LONGEST_FOLDER} characters; "
            "choose another folder, such as /tmp/slurm-lab"
        )
    return Plan(
        folder=folder,
        user=pwd.getpwuid(os.getuid()).pw_name,
        controller_host=platform.node().split(".")[0],
        nodes=nodes,
        cpus=cpus,
        gpus=gpus,
        port=free_block(nodes + 1),
        first_job=random.choice(FIRST_JOBS),  # noqa: S311 (no secret)
        network=network,
    )


def free_block(size: int) -> int:
    """Return the first of `size` TCP ports in a row that nobody listens on right now."""
    for _ in range(100):
        first = random.choice(PORTS)  # noqa: S311 (no secret)
        if all(is_free(first + offset) for offset in range(size)):
            return first
    raise UserError(f"found no {size} free TCP ports in a row between {PORTS.start} and {PORTS.stop}")


def is_free(port: int) -> bool:
    """Say whether a server could listen on a TCP port."""
    with socket.socket() as probe:
        # As the daemons do: connections that have just ended don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def write_plan(plan: Plan) -> None:
    """Write a plan into its folder, for commands that come later."""
    write_text(plan.folder / PLAN, json.dumps(asdict(plan), default=str, indent=2) + "\n")


def read_plan(folder: Path) -> Plan:
    """Read a folder's plan.

    Raises:
        UserError: there is none, so no cluster is up there.
    """
    path = folder.resolve() / PLAN
    if not path.is_file():
        raise UserError(f"{folder}: no cluster is up here")
    values = read_json(path)
    return Plan(**values | {"folder": Path(values["folder"])})
