"""A network of the nodes' own: a bridge of this machine, and a cable to each node that can be pulled."""

import subprocess
from collections.abc import Sequence

from launcher.lab.plan import Plan
from launcher.lab.scripts import bridge, link
from sparse_pretrain.errors import UserError

NETWORKS = range(1, 255)


def claim_network() -> int:
    """Make a bridge that nobody has, with its address, and return its number.

    Making it is the claim: two clusters that start together never get the same one.

    Raises:
        UserError: this process may not make one.
    """
    for number in NETWORKS:
        name = bridge(number)
        made = run_ip("link", "add", "name", name, "type", "bridge")
        if made.returncode == 0:
            run_ip("address", "add", f"10.213.{number}.1/24", "dev", name)
            run_ip("link", "set", name, "up")
            return number
        if "exists" not in made.stderr:
            raise UserError(f"network namespaces: {made.stderr.strip()}; they need root (and iproute2)")
    raise UserError("network namespaces: all bridges slab1 to slab254 exist; is a cluster to be taken down?")


def remove_network(plan: Plan) -> None:
    """Remove the bridge and the cables, as far as they are there."""
    if plan.network is not None:
        for number in range(1, plan.nodes + 1):
            run_ip("link", "delete", link(plan.network, number))
        run_ip("link", "delete", bridge(plan.network))


def plug(plan: Plan, node: str, connected: bool) -> None:
    """Connect a node's cable, or pull it.

    Raises:
        UserError: the cluster has no network of its own, or no such node.
    """
    if plan.network is None:
        raise UserError(f"{plan.folder}: cutting a node off needs a cluster with namespaces")
    done = run_ip("link", "set", link(plan.network, plan.number(node)), "up" if connected else "down")
    if done.returncode != 0:
        raise UserError(f"{node}: {done.stderr.strip()}")


def run_ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `ip`."""
    return run_quietly(["ip", *arguments])


def run_quietly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a short command and keep what it prints; one that does not exist fails with code 127."""
    try:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(command), 127, "", f"{command[0]}: not installed")
