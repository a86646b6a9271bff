"""The shell scripts that become the controller and the nodes, from the plan."""

import shlex

from launcher.lab.plan import Plan

# Private copies of what a node has of its own: its name, and its /etc/hosts.
AS_ROOT = ("unshare", "--mount", "--uts")
# An ordinary user gets the same inside a user namespace, still being himself in there.
AS_USER = ("unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "--uts")


def bridge(network: int) -> str:
    """Return the name of the bridge between the nodes and this machine."""
    return f"slab{network}"


def link(network: int, number: int) -> str:
    """Return the name of this machine's end of a node's cable."""
    return f"slab{network}n{number}"


def controller_script(plan: Plan) -> str:
    """Return what starts munge and, once it answers, stays as slurmctld."""
    munge = plan.folder / "munge"
    munged = (
        *("munged", "--force", "--num-threads=2", f"--key-file={munge}/key", f"--socket={plan.munge_socket}"),
        *(f"--pid-file={munge}/pid", f"--seed-file={munge}/seed", f"--log-file={plan.log('munged')}"),
    )
    return f"{shlex.join(munged)}\nexec slurmctld -D -i -f {plan.configuration}\n"


def node_script(plan: Plan, node: str, isolation: tuple[str, ...]) -> str:
    """Return what makes a node's surroundings and stays as its slurmd."""
    daemon = f"exec slurmd -D -N {node} -f {plan.configuration}\n"
    if not isolation:
        return daemon
    inside = f"mount --bind {plan.hosts} /etc/hosts\nhostname {node}\n"
    if plan.network is None:
        return f"exec {shlex.join((*isolation, 'sh', '-ec', inside + daemon))}\n"
    number = plan.number(node)
    here, there = link(plan.network, number), f"slab{plan.network}p{number}"
    inside += f"""until ip link set {there} name eth0 2>/dev/null; do sleep 0.02; done
ip address add {plan.address(node)}/24 dev eth0
ip link set eth0 up
ip link set lo up
"""
    # The cable is plugged in from outside, as soon as the process behind it has a network of its own.
    return f"""ip link delete {here} 2>/dev/null || true
ip link add {here} type veth peer name {there}
ip link set {here} master {bridge(plan.network)} up
{shlex.join((*isolation, "--net", "sh", "-ec", inside + daemon))} &
while ip link show {there} >/dev/null 2>&1; do ip link set {there} netns $! || exit 1; sleep 0.01; done
"""
