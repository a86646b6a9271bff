"""Counts of one source, and how they are told."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from data_prep.documents import Document, Drop


@dataclass
class Tally:
    """What was kept of a source, and what was dropped and why."""

    documents: int = 0
    characters: int = 0
    dropped: Counter[Drop] = field(default_factory=Counter)

    def keep(self, document: Document) -> None:
        """Count a kept document."""
        self.documents += 1
        self.characters += document.characters

    def dropped_by_reason(self) -> dict[str, int]:
        """Return the manifest's form of the drop counts: reasons that occurred, in a fixed order."""
        return {reason.value: self.dropped[reason] for reason in Drop if self.dropped[reason]}


def describe_drops(dropped: Iterable[Mapping[str, int]]) -> str:
    """Return drop counts, summed over sources, as words: `3 redirect, 1 too_short`."""
    total: Counter[str] = Counter()
    for counts in dropped:
        total.update(counts)
    return ", ".join(f"{count:,} {reason}" for reason, count in total.items()) or "none"
