"""A cluster that is up: ask it, harm it, take it down."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from launcher.lab.files import write_files
from launcher.lab.keeper import keeper_command
from launcher.lab.keepers import end_keeper, find_keeper
from launcher.lab.machine import find_isolation, missing_programs, refuse_unknown_names, search_path
from launcher.lab.network import claim_network, plug, remove_network
from launcher.lab.plan import PLAN, Plan, make_plan, read_plan
from launcher.lab.processes import descendants, parents
from launcher.lab.scripts import AS_ROOT, bridge, controller_script, node_script
from sparse_pretrain.errors import FailedError, UserError

CONTROLLER = "controller"
POLL_SECONDS = 0.03
UP_SECONDS = 30.0
COMMAND_SECONDS = 20.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Lab:
    """A cluster on this machine.

    Attributes:
        plan: its names, addresses and ports.
        environment: what `sbatch`, `squeue` and the others need to find it, and the rest of the environment.
        isolation: the command that gives a node its own name and hosts file; empty where that is forbidden.
        leash: descriptor of the pipe whose other end this process holds, or None when the cluster outlives it.
    """

    plan: Plan
    environment: dict[str, str] = field(repr=False)
    isolation: tuple[str, ...] = ()
    leash: int | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return self.plan.node_names

    def run(self, *command: str, timeout: float = COMMAND_SECONDS) -> str:
        """Run one of SLURM's commands and return what it prints.

        Raises:
            FailedError: it failed, or did not answer within `timeout` seconds.
        """
        try:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"{command[0]}: no answer within {timeout:.0f} s") from None
        if done.returncode != 0:
            raise FailedError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
        return done.stdout

    def node_states(self) -> dict[str, str]:
        """Return each node's state in SLURM's words, such as idle, allocated, down*."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def processes(self, node: str) -> set[int]:
        """Return a node's processes: slurmd, its steps, their tasks, and whatever those started."""
        keeper = self._keeper(node)
        return set() if keeper is None else descendants(keeper, parents())

    def kill_node(self, node: str) -> None:
        """End a node as a power cut would: its slurmd, all steps and tasks, and its network, at once."""
        end_keeper(self.plan, node)

    def revive_node(self, node: str) -> None:
        """Start a node again; it comes back by itself, in a second or two."""
        if self._keeper(node) is None:
            self._start_node(node)

    def set_down(self, node: str) -> None:
        """Tell SLURM that a node is lost, which it would find out by itself in half a minute."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lab")

    def resume(self, node: str) -> None:
        """Take back `set_down`."""
        self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def cut_off(self, node: str) -> None:
        """Pull a node's network cable: its processes go on, nobody hears of them (needs namespaces)."""
        plug(self.plan, node, connected=False)

    def heal(self, node: str) -> None:
        """Plug the cable in again."""
        plug(self.plan, node, connected=True)

    def wait_for(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            FailedError: it did not within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise FailedError(
                    f"{what}: not within {seconds:.0f} s; logs are in {self.plan.folder / 'log'}"
                )
            time.sleep(POLL_SECONDS)

    def start(self) -> None:
        """Start the controller and all nodes, and wait until every node takes jobs.

        Raises:
            FailedError: they don't get ready.
        """
        bridge_down = "" if self.plan.network is None else f"ip link delete {bridge(self.plan.network)}"
        self._keep(CONTROLLER, controller_script(self.plan), bridge_down)
        self.wait_for(self.plan.munge_socket.exists, UP_SECONDS, "munge")
        for node in self.nodes:
            self._start_node(node)
        self.wait_for(self._is_ready, UP_SECONDS, "the nodes")

    def down(self) -> None:
        """Take everything down; what remains is the folder with logs."""
        take_down(self.plan)

    def _is_ready(self) -> bool:
        with suppress(FailedError):
            return set(self.node_states().values()) == {"idle"}
        if self._keeper(CONTROLLER) is None:
            raise FailedError(f"slurmctld: ended; see {self.plan.folder / 'log'}")
        return False

    def _keeper(self, name: str) -> int | None:
        return find_keeper(self.plan, name)

    def _start_node(self, node: str) -> None:
        self.plan.spool(node).mkdir(parents=True, exist_ok=True)
        self._keep(node, node_script(self.plan, node, self.isolation))

    def _keep(self, name: str, script: str, afterwards: str = "") -> None:
        process_file = self.plan.process_file(name)
        path = search_path(self.environment.get("PATH"))
        with self.plan.log(f"{name}.start").open("a") as output:
            keeper = subprocess.Popen(
                keeper_command(process_file, self.leash is not None, afterwards, script),
                env=self.environment | {"PATH": path, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL if self.leash is None else self.leash,
                stdout=output,
                stderr=output,
                # Ctrl-C in the terminal is for whoever uses the cluster.
                start_new_session=True,
            )
        self.wait_for(lambda: process_file.exists() or keeper.poll() is not None, UP_SECONDS, name)


@contextmanager
def slurm_lab(
    folder: Path, nodes: int = 2, cpus: int = 4, namespaces: bool = False, gpus: int = 0
) -> Iterator[Lab]:
    """Run a SLURM cluster on this machine while the block runs.

    It ends with the block, and also when this process is killed.

    Args:
        folder: for configuration and logs; made, and left behind without anything that runs.
        nodes: number of nodes.
        cpus: CPUs that each node says it has.
        namespaces: a network of its own for each node, so that it can be cut off (root only).
        gpus: GPUs that each node says it has; scheduling only, nothing computes there.

    Raises:
        UserError: SLURM is not installed, or this machine does not allow what is asked.
        FailedError: the daemons don't get ready.
    """
    read_end, write_end = os.pipe()
    try:
        lab = prepare(folder, nodes, cpus, namespaces, gpus, leash=read_end)
        try:
            lab.start()
            yield lab
        finally:
            lab.down()
    finally:
        os.close(write_end)
        os.close(read_end)


def prepare(
    folder: Path, nodes: int, cpus: int, namespaces: bool, gpus: int, leash: int | None = None
) -> Lab:
    """Write down a cluster and make its network; start nothing yet.

    Raises:
        UserError: SLURM is not installed, a cluster is up there, or the machine does not allow what is asked.
    """
    missing = missing_programs()
    if missing:
        raise UserError(
            f"{', '.join(missing)}: not installed; launcher/lab/install.sh installs SLURM and munge"
        )
    forget_dead(folder)
    isolation = find_isolation()
    if namespaces and isolation != AS_ROOT:
        raise UserError("namespaces: a network per node needs root, with the right to make namespaces")
    plan = make_plan(folder, nodes, cpus, gpus, network=None)
    if not isolation:
        refuse_unknown_names(plan)
    if namespaces:
        plan = make_plan(folder, nodes, cpus, gpus, claim_network())
    try:
        write_files(plan)
    except BaseException:
        remove_network(plan)
        raise
    return Lab(plan, user_environment(os.environ, plan), isolation, leash)


def forget_dead(folder: Path) -> None:
    """Forget a cluster that was here and whose processes have ended with whoever started it.

    Raises:
        UserError: it is still up.
    """
    if not (folder / PLAN).exists():
        return
    plan = read_plan(folder)
    if any(find_keeper(plan, name) is not None for name in (*plan.node_names, CONTROLLER)):
        raise UserError(f"{folder}: a cluster is up here; take it down: python -m launcher.lab down {folder}")
    take_down(plan)


def open_lab(folder: Path) -> Lab:
    """Return the cluster that is up in a folder.

    Raises:
        UserError: none is.
    """
    plan = read_plan(folder)
    return Lab(plan, user_environment(os.environ, plan), find_isolation())


def user_environment(base: Mapping[str, str], plan: Plan) -> dict[str, str]:
    """Return the environment of the cluster's users: without what another cluster or job has set."""
    others = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_")
    kept = {key: value for key, value in base.items() if not key.startswith(others)}
    return kept | {"SLURM_CONF": str(plan.configuration)}


def take_down(plan: Plan) -> None:
    """End every process of a cluster, remove its network, and forget it.

    Raises:
        FailedError: something did not end as it should; it was killed.
    """
    failures = []
    for name in (*plan.node_names, CONTROLLER):
        try:
            end_keeper(plan, name)
        except FailedError as error:
            failures.append(str(error))
    remove_network(plan)
    (plan.folder / PLAN).unlink(missing_ok=True)
    if failures:
        raise FailedError("; ".join(failures))
