"""What the doctor says: findings, and what they were found from, for people and for scripts."""

from dataclasses import asdict, dataclass, field
from typing import Any

from sparse_pretrain.preflight.findings import Finding


@dataclass(frozen=True)
class Report:
    """What the doctor says.

    Attributes:
        findings: those that are wrong first.
        ranks: a row of facts for each rank, for the table.
        numbers: measured for the world as a whole: latency in seconds, bandwidth in bytes a second.
        checks: what was looked at.
    """

    findings: tuple[Finding, ...]
    ranks: tuple[dict[str, Any], ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a run may start; warnings do not count."""
        return not any(finding.level == "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return it for scripts."""
        return {
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "ranks": list(self.ranks),
            "numbers": self.numbers,
            "checks": list(self.checks),
        }


def report_from_json(value: dict[str, Any]) -> Report:
    """Return a report that was written as JSON."""
    return Report(
        findings=tuple(Finding(**finding) for finding in value["findings"]),
        ranks=tuple(value["ranks"]),
        numbers=value["numbers"],
        checks=tuple(value["checks"]),
    )


def render(report: Report) -> list[str]:
    """Return the lines to print: a row a rank, the network, then the findings."""
    header = ("rank", "host", "python", "torch", "free", "core", "memory", "clock")
    cells = [header, *(rank_row(facts) for facts in report.ranks)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    if not report.ranks:
        lines = []
    if "all_reduce_seconds" in report.numbers:
        rate = report.numbers["all_reduce_bytes_per_second"]
        lines.append(
            f"all-reduce: {report.numbers['all_reduce_seconds'] * 1e6:,.0f} us for 8 bytes, "
            f"{rate / 1e9:,.2f} GB/s for large ones"
        )
    lines += [finding.line() for finding in report.findings]
    if report.ok:
        lines.append(f"fine: {', '.join(report.checks)}")
    return lines


def rank_row(facts: dict[str, Any]) -> tuple[str, ...]:
    """Return one rank's cells."""

    def number(name: str, factor: float, unit: str) -> str:
        value = facts.get(name)
        return "-" if value is None else f"{value / factor:,.1f} {unit}"

    versions = facts.get("versions") or {}
    return (
        str(facts["rank"]),
        str(facts["host"]),
        str(versions.get("python", "-")),
        str(versions.get("torch", "-")),
        number("free_bytes", 1e9, "GB"),
        number("core_rate", 1e6, "M/s"),
        number("memory_rate", 1e9, "GB/s"),
        number("clock_skew", 1.0, "s"),
    )
