"""How this machine is built, as far as the placement of ranks needs to know: cores, NUMA nodes, where GPUs are."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/devices/system")
PCI_DEVICES = Path("/sys/bus/pci/devices")
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,pci.bus_id", "--format=csv,noheader")
GPU_SECONDS = 30.0


@dataclass(frozen=True)
class Core:
    """A physical core, as far as this process may use it.

    Attributes:
        threads: numbers of its hardware threads, as the kernel counts CPUs; at least one.
        node: the NUMA node whose memory is near; 0 on a machine that has no such thing.
    """

    threads: tuple[int, ...]
    node: int = 0


def read_cores(allowed: Iterable[int], system: Path = SYSTEM) -> tuple[Core, ...]:
    """Return the physical cores behind some CPU numbers, by NUMA node, then by number.

    Args:
        allowed: what this process may use; a sibling that is not among them is left out.
        system: where the kernel describes the machine. What it does not say there (containers hide some of it)
            counts as a core of its own, near node 0.
    """
    usable = set(allowed)
    nodes = read_nodes(system)
    cores = set()
    for number in usable:
        siblings = {number}
        with suppress(OSError, ValueError):
            path = system / f"cpu/cpu{number}/topology/thread_siblings_list"
            siblings |= parse_numbers(path.read_text(encoding="ascii"))
        cores.add(Core(tuple(sorted(siblings & usable)), nodes.get(number, 0)))
    return tuple(sorted(cores, key=lambda core: (core.node, core.threads)))


def read_nodes(system: Path = SYSTEM) -> dict[int, int]:
    """Return the NUMA node of each CPU number that the kernel names."""
    nodes: dict[int, int] = {}
    for path in system.glob("node/node*/cpulist"):
        with suppress(OSError, ValueError):
            node = int(path.parent.name.removeprefix("node"))
            nodes |= dict.fromkeys(parse_numbers(path.read_text(encoding="ascii")), node)
    return nodes


def parse_numbers(text: str) -> set[int]:
    """Return the numbers of a list such as `0-3,8`; an empty one has none.

    Raises:
        ValueError: it is no such list.
    """
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def find_gpu_nodes(gpus: Sequence[str], devices: Path = PCI_DEVICES) -> tuple[int | None, ...]:
    """Return the NUMA node of each GPU; None where nobody says (virtual machines, parts of a GPU).

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them: index, or (the beginning of) a UUID.
        devices: where the kernel describes PCI devices.
    """
    if not gpus:
        return ()
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=GPU_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return (None,) * len(gpus)
    addresses = parse_addresses(done.stdout)
    return tuple(read_pci_node(find_address(name, addresses), devices) for name in gpus)


def parse_addresses(listing: str) -> list[tuple[str, str, str]]:
    """Return index, UUID and PCI address of every GPU, from what nvidia-smi prints for `GPU_QUERY`."""
    rows = [tuple(field.strip() for field in line.split(",")) for line in listing.splitlines()]
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def find_address(name: str, addresses: Sequence[tuple[str, str, str]]) -> str | None:
    """Return the PCI address of a GPU by its name, None when it is not listed.

    nvidia-smi counts in PCI order and CUDA the fastest first, unless CUDA_DEVICE_ORDER says otherwise: the same
    on machines with one kind of GPU. Elsewhere a rank may get cores that are far from its GPU, no more.
    """
    for index, uuid, address in addresses:
        if name == index or (name.startswith("GPU-") and uuid.startswith(name)):
            return address
    return None


def read_pci_node(address: str | None, devices: Path = PCI_DEVICES) -> int | None:
    """Return the NUMA node of a PCI address as nvidia-smi writes it (`00000000:3B:00.0`); None when unknown."""
    found = re.fullmatch(r"([0-9A-Fa-f]+):(\S+)", address or "")
    if found is None:
        return None
    # The kernel writes at least four digits of the domain, nvidia-smi eight.
    name = f"{int(found.group(1), 16):04x}:{found.group(2).lower()}"
    with suppress(OSError, ValueError):
        node = int((devices / name / "numa_node").read_text(encoding="ascii"))
        return node if node >= 0 else None
    return None
