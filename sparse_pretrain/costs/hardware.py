"""What a plan knows of a machine: data-sheet numbers with assumed efficiencies, or constants measured on it."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from sparse_pretrain.config.base import Section
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json

Kind = Literal["gpu", "cpu"]
GIB = 2**30


class KernelCost(Section):
    """Measured seconds of one kernel: per_flop x FLOPs + per_element x elements + per_call x calls."""

    per_flop: float = Field(0.0, ge=0)
    per_element: float = Field(0.0, ge=0)
    per_call: float = Field(0.0, ge=0)


class Link(Section):
    """How fast one rank sends while all of them do; `measured` by ranks and bytes a number, where it was.

    Attributes:
        bytes_per_s: in one direction, as the data sheet says.
        fraction: of it that a ring of all-reduces reaches.
        latency: seconds of one message.
    """

    bytes_per_s: float = Field(gt=0)
    fraction: float = Field(1.0, gt=0, le=1)
    latency: float = Field(1e-5, ge=0)

    @property
    def rate(self) -> float:
        """Bytes a second that arrive."""
        return self.bytes_per_s * self.fraction


class MeasuredLink(Section):
    """Ranks of one machine, measured: an operation takes latency + bytes of the whole buffer x seconds_per_byte."""

    ranks: int = Field(ge=2)
    latency: float = Field(ge=0)
    all_reduce: dict[str, float] = Field(description="seconds a byte by precision")
    all_gather: dict[str, float] = Field(description="seconds a byte by precision")


class Device(Section):
    """One accelerator, or one CPU core (or as many as a rank has).

    Attributes:
        name: for people.
        source: where its numbers come from.
        kind: `gpu`, or `cpu` (ranks share the machine's cores and memory).
        flops: peak of dense matrix products by precision, FLOP/s.
        matmul_fraction: of the peak that products of the encoder's size reach.
        attention_fraction: of the peak that fused attention reaches.
        memory: bytes that a rank may use.
        bandwidth: bytes a second to and from memory.
        bandwidth_fraction: of it that elementwise passes reach.
        launch: seconds in which the host starts one kernel (eager PyTorch); no shorter is any kernel's share.
        overlap: share of a backward pass behind which communication can hide.
        reserved: bytes that framework and communication library take before the first tensor.
        cores: ranks that run at full speed on one machine (CPUs; more of them take turns); 0: any number.
        in_step: how much longer kernels take inside a step than measured alone (caches are colder).
        kernels: measured constants by precision and kernel; what is missing follows from bytes and FLOPs.
        local: between ranks of one machine.
        local_measured: the same, measured.
        write: bytes a second to the checkpoint's disk.
    """

    name: str
    source: str = "data sheet x assumed efficiency"
    kind: Kind = "gpu"
    flops: dict[str, float] = Field(min_length=1)
    matmul_fraction: float = Field(0.65, gt=0, le=1)
    attention_fraction: float = Field(0.35, gt=0, le=1)
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0)
    bandwidth_fraction: float = Field(0.8, gt=0, le=1)
    launch: float = Field(6e-6, ge=0)
    overlap: float = Field(0.7, ge=0, le=1)
    reserved: float = Field(2.0 * GIB, ge=0)
    cores: int = Field(0, ge=0)
    in_step: float = Field(1.0, ge=1)
    kernels: dict[str, dict[str, KernelCost]] = Field(default_factory=dict)
    local: Link
    local_measured: list[MeasuredLink] = Field(default_factory=list)
    write: float = Field(
        1e9, gt=0, description="bytes a second to the disk of checkpoints, all ranks together"
    )


def gpu(
    name: str, flops: dict[str, float], memory: float, bandwidth: float, link: float, **more: Any
) -> Device:
    """Return a data-sheet entry; `memory` in GiB, `link` in bytes a second in one direction."""
    local = Link(bytes_per_s=link, fraction=0.8, latency=1e-5)
    return Device(name=name, flops=flops, memory=memory * GIB, bandwidth=bandwidth, local=local, **more)


# Dense matrix products without sparsity, from NVIDIA's data sheets of the SXM boards; fp32 is TF32's rate only where
# torch is told to use it, which it is not here.
DEVICES: dict[str, Device] = {
    "h100": gpu("H100 SXM 80 GB", {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}, 79.6, 3.35e12, 450e9),
    "h200": gpu("H200 SXM 141 GB", {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}, 139.8, 4.8e12, 450e9),
    "a100-80gb": gpu(
        "A100 SXM 80 GB",
        {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
        79.2,
        2.039e12,
        300e9,
        attention_fraction=0.5,
    ),
    "a100-40gb": gpu(
        "A100 SXM 40 GB",
        {"bf16": 312e12, "fp16": 312e12, "fp32": 19.5e12},
        39.4,
        1.555e12,
        300e9,
        attention_fraction=0.5,
    ),
    "v100": gpu(
        "V100 SXM2 32 GB", {"fp16": 125e12, "fp32": 15.7e12}, 31.7, 0.9e12, 150e9, attention_fraction=0.3
    ),
    "l40s": gpu("L40S 48 GB", {"bf16": 362e12, "fp16": 362e12, "fp32": 91.6e12}, 44.5, 0.864e12, 32e9),
    "cpu": Device(
        name="CPU core with AMX",
        kind="cpu",
        flops={"bf16": 1.5e12, "fp32": 0.1e12},
        matmul_fraction=0.6,
        attention_fraction=0.1,
        memory=8.0 * GIB,
        bandwidth=1.0e10,
        bandwidth_fraction=0.6,
        overlap=0.0,
        reserved=0.8 * GIB,
        cores=2,
        local=Link(bytes_per_s=2e9, fraction=0.5, latency=1e-4),
    ),
}

# Bytes a second of one node in one direction, all its adapters together.
INTERCONNECTS: dict[str, Link] = {
    "8x400g": Link(bytes_per_s=400e9, fraction=0.8, latency=1.5e-5),
    "8x200g": Link(bytes_per_s=200e9, fraction=0.8, latency=1.5e-5),
    "4x200g": Link(bytes_per_s=100e9, fraction=0.8, latency=1.5e-5),
    "400g": Link(bytes_per_s=50e9, fraction=0.8, latency=1.5e-5),
    "200g": Link(bytes_per_s=25e9, fraction=0.8, latency=1.5e-5),
    "100g": Link(bytes_per_s=12.5e9, fraction=0.8, latency=1.5e-5),
    "ethernet-100g": Link(bytes_per_s=12.5e9, fraction=0.6, latency=5e-5),
    "ethernet-25g": Link(bytes_per_s=3.125e9, fraction=0.6, latency=5e-5),
    "ethernet-10g": Link(bytes_per_s=1.25e9, fraction=0.6, latency=5e-5),
}
USUAL_INTERCONNECT = {
    "h100": "8x400g",
    "h200": "8x400g",
    "a100-80gb": "8x200g",
    "a100-40gb": "8x200g",
    "v100": "100g",
}


def find_device(argument: str) -> Device:
    """Return a built-in entry, or what a YAML or JSON file (`plan --measure`) holds.

    Raises:
        UserError: neither, or the file is no device: the first key that is wrong, on one line.
    """
    if argument in DEVICES:
        return DEVICES[argument]
    path = Path(argument)
    if not path.is_file():
        raise UserError(
            f"--gpu = {argument!r}: give one of {', '.join(DEVICES)}, or a file of plan --measure"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Device.model_validate(values)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML or JSON: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "device"
        raise UserError(f"{path}: {key}: {first['msg']}") from None


def find_interconnect(argument: str | None, device: str) -> tuple[str, Link]:
    """Return the link between nodes by name; the usual one of the device when none is asked for.

    Raises:
        UserError: no such name.
    """
    name = argument or USUAL_INTERCONNECT.get(device, "ethernet-25g")
    if name not in INTERCONNECTS:
        raise UserError(f"--interconnect = {name!r}: must be one of {', '.join(INTERCONNECTS)}")
    return name, INTERCONNECTS[name]


def save_device(path: Path, device: Device) -> None:
    """Write a device file."""
    write_json(path, device.model_dump(mode="json"))
