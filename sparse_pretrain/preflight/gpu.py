"""What nvidia-smi says of a machine's GPUs."""

import subprocess
from dataclasses import dataclass

SECONDS = 30.0
FIELDS = (
    "index",
    "name",
    "driver_version",
    "ecc.errors.uncorrected.volatile.total",
    "memory.used",
    "memory.total",
    "temperature.gpu",
    "clocks_throttle_reasons.hw_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)
MIB = 2**20


@dataclass(frozen=True)
class GpuFacts:
    """One GPU.

    Attributes:
        index: as the driver counts.
        name: of the model.
        driver: version.
        uncorrected: memory errors since the driver was loaded that could not be corrected; None without ECC.
        used_bytes, total_bytes: of its memory; None where the driver does not say.
        celsius: temperature; None where the driver does not say.
        throttled: whether it runs slower because it is too hot or lacks power.
    """

    index: int
    name: str
    driver: str
    uncorrected: int | None
    used_bytes: int | None
    total_bytes: int | None
    celsius: int | None
    throttled: bool


def look_at_gpus() -> tuple[GpuFacts, ...]:
    """Return this machine's GPUs; none where nvidia-smi is missing, fails or does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[GpuFacts, ...]:
    """Read what nvidia-smi prints for `FIELDS`; what a GPU does not have is `[N/A]`."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(FIELDS) or not cells[0].isdigit():
            continue
        index, name, driver, uncorrected, used, total, celsius, hardware, heat = cells
        found.append(
            GpuFacts(
                index=int(index),
                name=name,
                driver=driver,
                uncorrected=number(uncorrected),
                used_bytes=scaled(used),
                total_bytes=scaled(total),
                celsius=number(celsius),
                throttled="Active" in (hardware, heat),
            )
        )
    return tuple(found)


def number(text: str) -> int | None:
    """Return a number, None for `[N/A]` and the like."""
    return int(text) if text.isdigit() else None


def scaled(text: str) -> int | None:
    """Return MiB as bytes."""
    value = number(text)
    return None if value is None else value * MIB
