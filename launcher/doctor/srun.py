"""A site's settings as srun takes them: the doctor's ranks start where and how those of a job would."""

import shlex
from collections.abc import Sequence

from launcher.render import allocation_options
from launcher.site import Site, check_ranks_and_gpus
from sparse_pretrain.errors import UserError

# Further options of a site are sbatch's: those that srun does not have, or takes for something else.
SBATCH_ONLY = frozenset(
    {"array", "batch", "export-file", "get-user-env", "ignore-pbs", "kill-on-invalid-dep", "mail-type"}
    | {"mail-user", "no-requeue", "output", "error", "parsable", "requeue", "signal", "wait", "wrap"}
)


def srun_options(site: Site, nodes: int, ranks_per_node: int) -> list[str]:
    """Return srun's options: the shape, and what allots nodes on this site.

    Raises:
        UserError: more ranks than GPUs on a node.
    """
    try:
        check_ranks_and_gpus(ranks_per_node, site.gpus_per_node)
    except ValueError as error:
        raise UserError(f"--ranks-per-node: {error}") from None
    options = [
        f"--nodes={nodes}",
        f"--ntasks-per-node={ranks_per_node}",
        f"--cpus-per-task={site.cpus_per_rank}",
    ]
    if site.gpus_per_node:
        kind = f"{site.gpu_type}:" if site.gpu_type else ""
        options.append(f"--gpus-per-node={kind}{site.gpus_per_node}")
    options += [f"--{name}={value}" for name, value in allocation_options(site) if value is not None]
    if site.exclusive:
        options.append("--exclusive")
    options += [extra for extra in site.extra if extra[2:].partition("=")[0] not in SBATCH_ONLY]
    if site.container.kind == "pyxis":
        options.append(f"--container-image={site.container.image}")
        if site.container.mounts:
            options.append(f"--container-mounts={','.join(site.container.mounts)}")
    return options


def on_site(site: Site, command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` as a rank of this site: after modules, variables and preamble.

    With pyxis a rank starts inside the container, where modules and preamble of the outside mean nothing.
    """
    inner = [*container_command(site), *command]
    lines = setup_lines(site)
    if not lines:
        return inner
    return ["bash", "-c", "\n".join(["set -eo pipefail", *lines, 'exec "$@"']), "bash", *inner]


def container_command(site: Site) -> list[str]:
    """Return what goes before a command to run it in the site's container; nothing where srun does that."""
    container = site.container
    if container.kind != "apptainer":
        return []
    binds = [part for mount in container.mounts for part in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if site.gpus_per_node else []), *binds, str(container.image)]


def setup_lines(site: Site) -> list[str]:
    """Return the shell lines that prepare a node, as a job's script has them."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    if site.container.kind == "pyxis":
        return exports
    modules = [f"module load {shlex.quote(module)}" for module in site.modules]
    if modules:
        modules = ["type module &>/dev/null || source /etc/profile || true", *modules]
    return [*modules, *exports, *site.preamble]
