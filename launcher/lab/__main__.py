"""`python -m launcher.lab up|down|status FOLDER`: a SLURM cluster on this machine, to try things on."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.lab.lab import Lab, open_lab, prepare
from sparse_pretrain.errors import FailedError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands; return the exit code (2: a user's mistake, 1: a failure)."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.lab",
        description="A real SLURM cluster on this machine. Try: python -m launcher.lab up slurm-lab",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="up|down|status")
    up_parser = commands.add_parser("up", help="start a cluster; it stays until `down`")
    up_parser.add_argument("folder", type=Path, help="for its configuration and logs")
    up_parser.add_argument("--nodes", type=int, default=2, help="number of nodes (%(default)s)")
    up_parser.add_argument("--cpus", type=int, default=4, help="CPUs each says it has (%(default)s)")
    up_parser.add_argument("--gpus", type=int, default=0, help="GPUs each says it has (%(default)s)")
    up_parser.add_argument(
        "--namespaces", action="store_true", help="a network of its own for each node (root)"
    )
    for name, text in (("down", "end a cluster"), ("status", "show a cluster's nodes and jobs")):
        commands.add_parser(name, help=text).add_argument("folder", type=Path, help="the cluster's folder")
    options = parser.parse_args(arguments)
    try:
        if options.command == "up":
            up(options)
        elif options.command == "down":
            open_lab(options.folder).down()
            print(f"{options.folder}: down; logs are in {options.folder / 'log'}")
        else:
            status(open_lab(options.folder))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except FailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def up(options: argparse.Namespace) -> None:
    """Start a cluster and say how to use it."""
    lab = prepare(options.folder, options.nodes, options.cpus, options.namespaces, options.gpus)
    try:
        lab.start()
    except BaseException:
        lab.down()
        raise
    print(welcome(lab))


def welcome(lab: Lab) -> str:
    """Say what is up, how to use it, and how to end it."""
    names = ", ".join(lab.nodes)
    return f"""SLURM is up: {names} ({lab.plan.cpus} CPUs each, all of them this machine), partitions main and urgent.

  export SLURM_CONF={lab.plan.configuration}
  sinfo
  srun --nodes={lab.plan.nodes} hostname

Take it down: {sys.executable} -m launcher.lab down {lab.plan.folder}"""


def status(lab: Lab) -> None:
    """Show nodes and jobs, as SLURM sees them."""
    print(lab.run("sinfo"), lab.run("squeue"), sep="\n", end="")


if __name__ == "__main__":
    sys.exit(main())
