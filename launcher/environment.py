"""What each rank on this machine finds in its environment."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.topology import Core, find_gpu_nodes, read_cores
from sparse_pretrain.errors import UserError

# Left over from another launcher, these would contradict what we set. TORCHELASTIC_USE_AGENT_STORE makes
# every rank a client of a store that nobody serves.
CONTRADICTING = ("LOCAL_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE")
CONTRADICTING_PREFIX = "TORCHELASTIC_"


@dataclass(frozen=True)
class Machine:
    """What this machine offers to ranks.

    Attributes:
        cores: CPU cores that this process may use, at least 1.
        gpus: their names as CUDA_VISIBLE_DEVICES takes them; empty without a GPU.
        loopback: name of the loopback network interface, or None where it has no usual name.
        layout: the physical cores behind `cores`; empty where ranks cannot be bound to cores.
        gpu_nodes: NUMA node of each GPU, None where unknown.
    """

    cores: int
    gpus: tuple[str, ...] = ()
    loopback: str | None = None
    layout: tuple[Core, ...] = ()
    gpu_nodes: tuple[int | None, ...] = ()


def find_machine(environment: Mapping[str, str] = os.environ) -> Machine:
    """Look at this machine: cores by the scheduler's affinity, GPUs as far as the user shows them."""
    # Not os.cpu_count(): a batch system or container may have given us fewer.
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    gpus = visible_gpus(environment)
    return Machine(
        cores=len(allowed) or os.cpu_count() or 1,
        gpus=gpus,
        loopback=loopback,
        layout=read_cores(allowed),
        gpu_nodes=find_gpu_nodes(gpus),
    )


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES shows, or else all that nvidia-smi lists.

    torch would know too, but importing it costs seconds and takes memory on the first GPU.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        # CUDA stops at the first name it does not know: "-1" and "" hide every GPU.
        end = next((index for index, name in enumerate(names) if name in ("", "-1")), len(names))
        return tuple(names[:end])
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    count = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return tuple(str(index) for index in range(count))


def shared_environment(
    base: Mapping[str, str],
    nproc: int,
    port: int,
    machine: Machine,
    interpreter: Path,
    binding: Sequence[frozenset[int]] = (),
) -> dict[str, str]:
    """Return what every rank of a run on this machine has in common.

    Args:
        base: the user's environment; what the user set for threads and network stays.
        nproc: number of ranks, all here.
        port: free TCP port for the rendezvous.
        machine: what is here.
        interpreter: the Python that runs the ranks; its folder comes first on PATH.
        binding: CPU numbers of each rank, empty where ranks are not bound.

    Raises:
        UserError: more ranks than GPUs.
    """
    if machine.gpus and nproc > len(machine.gpus):
        raise UserError(
            f"nproc = {nproc}: this machine shows {len(machine.gpus)} GPU(s), and NCCL takes one rank a GPU; "
            f"use {len(machine.gpus)}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    environment = {
        key: value
        for key, value in base.items()
        if key not in CONTRADICTING and not key.startswith(CONTRADICTING_PREFIX)
    }
    # A venv that was never activated: programs that a rank starts are those beside its Python.
    environment["PATH"] = os.pathsep.join([str(interpreter.parent), base.get("PATH", os.defpath)])
    environment |= {
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    # N ranks with a thread for each core each would fight over the cores; torchrun's 1 wastes them.
    share = min(map(len, binding), default=machine.cores // nproc)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, min(share, machine.cores // nproc))))
    if machine.loopback is not None:
        # Gloo otherwise connects to the address of the machine's own name: a laptop on a VPN, or a name
        # that does not resolve, then hangs or fails although all ranks are here.
        environment.setdefault("GLOO_SOCKET_IFNAME", machine.loopback)
    if machine.gpus:
        # Every rank sees all of them and LOCAL_RANK chooses, as under torchrun: DeepSpeed calls
        # set_device(LOCAL_RANK), which fails when each rank sees only its own.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(machine.gpus[:nproc])
    return environment


def rank_environment(shared: Mapping[str, str], rank: int) -> dict[str, str]:
    """Return one rank's environment: on a single machine the local rank is the rank."""
    return {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def free_port() -> int:
    """Return a TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
