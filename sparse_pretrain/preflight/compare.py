"""The facts of all ranks beside each other: pure, so that each fault can be shown in a test."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from sparse_pretrain.preflight.facts import RankFacts
from sparse_pretrain.preflight.findings import Finding, unwritable

SKEW_SECONDS = 2.0
LEAST_FREE = 10 * 10**9
# A GPU without any process still holds some for the driver.
USED_BYTES = 10**9
FEW = 4


def compare(
    facts: Sequence[RankFacts], run_folder: Path, least_free: int = LEAST_FREE, used_by_us: bool = False
) -> list[Finding]:
    """Return what is not as it should be.

    Args:
        facts: of all ranks, in their order.
        run_folder: of the run, for people.
        least_free: bytes that must be free there.
        used_by_us: the GPUs' memory is in use by the training itself.
    """
    return [
        *different_versions(facts),
        *different_code(facts),
        *hidden_paths(facts),
        *run_folder_faults(facts, run_folder),
        *little_space(facts, run_folder, least_free),
        *skewed_clocks(facts),
        *ill_gpus(facts, used_by_us),
    ]


def usual(values: Sequence[str]) -> str:
    """Return the value that most have; rank 0's where several are as frequent."""
    counts = Counter(values)
    most = max(counts.values())
    return next(value for value in values if counts[value] == most)


def different_versions(facts: Sequence[RankFacts]) -> list[Finding]:
    """Return ranks that found another version of Python or of a package than most."""
    findings = []
    names = dict.fromkeys(name for one in facts for name in one.versions)
    for name in names:
        versions = [one.versions.get(name, "missing") for one in facts]
        most = usual(versions)
        findings += [
            Finding(
                "versions",
                "wrong",
                f"{name} {version}, most ranks have {most}",
                f"use the same environment on {one.host} (another PYTHONPATH, module or virtual environment?)",
                one.rank,
                one.host,
            )
            for one, version in zip(facts, versions, strict=True)
            if version != most
        ]
    return findings


def different_code(facts: Sequence[RankFacts]) -> list[Finding]:
    """Return ranks that run other sources of this package than most."""
    most = usual([one.code for one in facts])
    commits = {one.code: one.commit for one in facts}
    return [
        Finding(
            "code",
            "wrong",
            f"runs other sources of sparse_pretrain ({describe_code(one.code, one.commit)}, most ranks "
            f"{describe_code(most, commits[most])})",
            f"bring {one.host} to the same checkout or wheel",
            one.rank,
            one.host,
        )
        for one in facts
        if one.code != most
    ]


def describe_code(code: str, commit: str | None) -> str:
    """Return a commit for people, or the digest of the sources where there is none."""
    return f"commit {commit[:12]}{'+changes' * commit.endswith('+changes')}" if commit else f"digest {code}"


def hidden_paths(facts: Sequence[RankFacts]) -> list[Finding]:
    """Return paths of the recipe that ranks cannot read, once for each machine."""
    findings: dict[tuple[str, str], Finding] = {}
    for one in facts:
        for path in one.hidden:
            findings.setdefault(
                (one.host, path),
                Finding(
                    "paths",
                    "wrong",
                    f"{path} is not there or not readable",
                    "put it on a file system that all machines mount under the same name",
                    one.rank,
                    one.host,
                ),
            )
    return list(findings.values())


def run_folder_faults(facts: Sequence[RankFacts], run_folder: Path) -> list[Finding]:
    """Return ranks that cannot write to the run folder, or do not see what others wrote there."""
    hosts = {one.rank: one.host for one in facts}
    cannot_write = {one.rank for one in facts if one.write_problem is not None}
    findings = [
        unwritable(run_folder, one.write_problem, one.rank, one.host)
        for one in facts
        if one.write_problem is not None
    ]
    for one in facts:
        unseen = [rank for rank in one.unseen if rank not in cannot_write]
        if unseen:
            names = ", ".join(f"{rank} ({hosts.get(rank)})" for rank in unseen[:FEW])
            findings.append(
                Finding(
                    "run folder",
                    "wrong",
                    f"does not see in {run_folder} what rank {names}{' and more' * (len(unseen) > FEW)} wrote",
                    "choose an output on a file system that all machines share",
                    one.rank,
                    one.host,
                )
            )
    return findings


def little_space(facts: Sequence[RankFacts], run_folder: Path, least: int) -> list[Finding]:
    """Return the run folder's free space when it is little."""
    free = [one.free_bytes for one in facts if one.free_bytes is not None]
    if not free or min(free) >= least:
        return []
    return [
        Finding(
            "space",
            "warning",
            f"{run_folder} has {min(free) / 1e9:,.1f} GB free, less than {least / 1e9:,.0f} GB",
            "checkpoints take up to 12 bytes a parameter each, and checkpoint.keep.last + 1 of them lie there",
        )
    ]


def skewed_clocks(facts: Sequence[RankFacts]) -> list[Finding]:
    """Return machines whose clocks differ from the median."""
    middle = median([one.clock for one in facts])
    found: dict[str, Finding] = {}
    for one in facts:
        if abs(one.clock - middle) > SKEW_SECONDS:
            found.setdefault(
                one.host,
                Finding(
                    "clock",
                    "warning",
                    f"its clock is {one.clock - middle:+.1f} s off",
                    "let NTP or chrony set it: walltime and the age of files are judged by it",
                    one.rank,
                    one.host,
                ),
            )
    return list(found.values())


def ill_gpus(facts: Sequence[RankFacts], used_by_us: bool) -> list[Finding]:
    """Return GPUs with memory errors, throttled ones, those that others use, and machines with another kind."""
    findings = []
    models = [gpu.name for one in facts for gpu in one.gpus]
    most = usual(models) if models else ""
    for one in facts:
        for gpu in one.gpus:
            used = gpu.used_bytes or 0
            faults = (
                (
                    bool(gpu.uncorrected),
                    # A job that was requeued after one must not end for it: the driver has set the page aside.
                    "warning" if used_by_us else "wrong",
                    f"{gpu.uncorrected} uncorrected memory errors",
                    "drain the node and reset the GPU",
                ),
                (
                    gpu.throttled,
                    "warning",
                    f"slowed down by heat or power ({gpu.celsius} degrees C)",
                    "every step waits for it: look at its cooling",
                ),
                (
                    not used_by_us and used > USED_BYTES,
                    "warning",
                    f"{used / 1e9:.1f} GB of its memory are in use by others",
                    "end what `nvidia-smi` lists there, or ask for whole nodes",
                ),
                (gpu.name != most, "warning", f"is a {gpu.name}, most are {most}", "ask for one kind of GPU"),
            )
            findings += [
                Finding("gpu", level, f"GPU {gpu.index}: {what}", advice, one.rank, one.host)  # type: ignore[arg-type]
                for holds, level, what, advice in faults
                if holds
            ]
    return findings
