"""What is inside a prepared folder."""

from collections.abc import Container
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.inspect_masking import answers, masked, painted
from data_prep.progress import describe_counts, tell
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer
from sparse_pretrain.data.manifest import Manifest, Shard, read_manifest
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.shards import Rows, map_shard, rows_of, take_rows, values_of
from sparse_pretrain.files import atomic_path, sha256_file

HISTOGRAM_BINS = 8
SAMPLES_PER_SPLIT = 2
ROWS_AT_ONCE = 16_384
BAR_WIDTH = 40
PNG_BINS = 64
TOP_TOKENS = 30
TOP_SHOWN = 12
UNKNOWN_SHOWN = 12
CONTEXT = 6


def inspect(folder: Path) -> dict[str, Any]:
    """Read every shard of a prepared folder and report on it.

    Returns:
        JSON-able: `intact` and `problems` (each a line), format and tokenizer, the sources, and for each
        split the counts, fill in [0, 1], distinct ids used, share of unknown tokens among the text's
        tokens, row lengths (`rows_by_length`, and a short histogram), the most frequent tokens, text around
        unknown ones, and decoded samples, each also as masking shows it to the model (`inspect_masking.masked`).
        Damaged shards are left out of the numbers.

    Raises:
        UserError: the folder was not prepared.
    """
    manifest = read_manifest(folder)
    tokenizer = load_tokenizer(str((folder / "tokenizer").absolute()))
    damaged = {
        shard.file: problem
        for shard in chain.from_iterable(counts.shards for counts in manifest.splits.values())
        if (problem := shard_problem(folder, shard)) is not None
    }
    problems = list(damaged.values())
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        problems.append("tokenizer: not the one that the rows were made with")
    return {
        "folder": str(folder),
        "intact": not problems,
        "problems": problems,
        "format": manifest.format,
        "sequence_length": manifest.sequence_length,
        "seed": manifest.seed,
        "fingerprint": manifest.fingerprint,
        "vocabulary_size": manifest.vocabulary_size,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "sources": [source.model_dump() for source in manifest.sources],
        "splits": {
            split: {
                "documents": counts.documents,
                "rows": counts.rows,
                "tokens": counts.tokens,
                "shards": len(counts.shards),
                "bytes": sum(shard.bytes for shard in counts.shards),
                "fill": manifest.fill(split),
            }
            | survey(folder, manifest, counts.shards, damaged.keys(), tokenizer)
            for split, counts in manifest.splits.items()
        },
    }


def shard_problem(folder: Path, shard: Shard) -> str | None:
    """Return what is wrong with a shard's bytes, or None."""
    path = folder / shard.file
    if not path.is_file():
        return f"{shard.file}: missing"
    size = path.stat().st_size
    if size != shard.bytes:
        return f"{shard.file}: {size:,} bytes, the manifest says {shard.bytes:,}"
    found = sha256_file(path)
    return (
        None if found == shard.sha256 else f"{shard.file}: SHA-256 {found}, the manifest says {shard.sha256}"
    )


def survey(
    folder: Path, manifest: Manifest, shards: list[Shard], damaged: Container[str], tokenizer: LoadedTokenizer
) -> dict[str, Any]:
    """Return the numbers that need a look at the rows; files in `damaged` are left out."""
    length = manifest.sequence_length
    used = np.zeros(manifest.vocabulary_size, np.int64)
    lengths = np.zeros(length + 1, np.int64)
    random_next = sequences = 0
    samples: list[dict[str, Any]] = []
    unknown = tokenizer.tokenizer.unk_token_id
    around_unknown: list[str] = []
    table = TokenTable.of(tokenizer.tokenizer, manifest.special_tokens, manifest.vocabulary_size)
    firsts = accumulate((shard.rows for shard in shards), initial=0)
    for first_row, shard in zip(firsts, shards, strict=False):
        if shard.file in damaged:
            continue
        columns = map_shard(folder / shard.file, length, manifest.format)
        sizes = values_of(columns["length"])
        input_ids = values_of(columns["input_ids"])
        lengths += np.bincount(sizes, minlength=length + 1)
        for first in range(0, shard.rows, ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            real = np.arange(length) < sizes[rows, None]
            used += np.bincount(input_ids[rows][real], minlength=len(used))
            if unknown is not None and len(around_unknown) < UNKNOWN_SHOWN:
                around_unknown += places_of(unknown, input_ids[rows], real, tokenizer)
        if "random_next" in columns:
            random_next += int(values_of(columns["random_next"]).sum())
        if "sequence_start" in columns:
            sequences += len(values_of(columns["sequence_start"]))
        for row in range(min(shard.rows, SAMPLES_PER_SPLIT - len(samples))):
            seen = masked(input_ids[row], int(sizes[row]), first_row + row, table, tokenizer)
            samples.append(decode(rows_of(take_rows(columns, np.array([row]))), tokenizer) | {"masked": seen})
    special = [number for number in manifest.special_tokens.never_masked if number != unknown]
    text = used.sum() - used[special].sum()
    report = {
        "distinct_tokens": int(np.count_nonzero(used)),
        "unknown_share": float(used[unknown] / text) if unknown is not None and text else 0.0,
        "rows_by_length": {at: count for at, count in enumerate(lengths.tolist()) if count},
        "length_histogram": histogram(lengths),
        "top_tokens": top_tokens(used, special, tokenizer),
        "around_unknown": around_unknown[:UNKNOWN_SHOWN],
        "samples": samples,
    }
    count = sequences if manifest.has_sequences else int(lengths.sum())
    more = {"sequences": sequences} if manifest.has_sequences else {}
    return report | more | ({"random_next_share": random_next / max(1, count)} if manifest.has_pairs else {})


def top_tokens(
    used: NDArray[np.int64], special: list[int], tokenizer: LoadedTokenizer
) -> list[dict[str, Any]]:
    """Return the most frequent tokens of the text, the most frequent first, each with its share of the text."""
    counts = used.copy()
    counts[special] = 0
    most = np.argsort(-counts, kind="stable")[:TOP_TOKENS].tolist()
    total = max(1, int(counts.sum()))
    names = tokenizer.tokenizer.convert_ids_to_tokens(most)
    return [
        {"id": number, "token": name, "count": int(counts[number]), "share": float(counts[number] / total)}
        for number, name in zip(most, names, strict=True)
        if counts[number]
    ]


def places_of(
    token: int, input_ids: NDArray[Any], real: NDArray[np.bool_], tokenizer: LoadedTokenizer
) -> list[str]:
    """Return the text around a token's first few places: the text that an unknown token was made of is gone.

    Args:
        token: its id.
        input_ids: [rows, length].
        real: bool [rows, length], no padding.
        tokenizer: of the rows.
    """
    found = np.argwhere((input_ids == token) & real)[:UNKNOWN_SHOWN].tolist()
    return [
        tokenizer.tokenizer.decode(input_ids[row, max(0, at - CONTEXT) : at + CONTEXT + 1].tolist())
        for row, at in found
    ]


def histogram(lengths: NDArray[np.int64]) -> list[dict[str, int]]:
    """Sum the counts of lengths 1 … n (index = length) into bins of nearly equal width."""
    longest = len(lengths) - 1
    edges = np.unique(np.linspace(0, longest, HISTOGRAM_BINS + 1).round().astype(int)).tolist()
    return [
        {"from": low + 1, "to": high, "rows": int(lengths[low + 1 : high + 1].sum())}
        for low, high in pairwise(edges)
    ]


def decode(row: Rows, tokenizer: LoadedTokenizer) -> dict[str, Any]:
    """Return one row as text, special tokens shown; of pairs, both segments and the label.

    A row of several sequences is given as a list of them.
    """
    tokens = row.tokens[0, : row.lengths[0]].tolist()
    starts = [0] if row.starts is None else row.starts.flat.tolist()
    text = tokenizer.tokenizer.decode
    found: list[dict[str, Any]] = []
    for number, (start, end) in enumerate(pairwise([*starts, len(tokens)])):
        if row.second_start is None or row.random_next is None:
            found.append({"text": text(tokens[start:end])})
            continue
        second = int(row.second_start[number])
        found.append(
            {
                "first": text(tokens[start:second]),
                "second": text(tokens[second:end]),
                "random_next": bool(row.random_next[number]),
            }
        )
    return found[0] if row.starts is None else {"sequences": found}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw how long the rows of each split are, as a PNG file."""
    from matplotlib.figure import Figure

    splits = report["splits"]
    figure = Figure(figsize=(7, 2.6 * len(splits)), layout="constrained")
    length = report["sequence_length"]
    for at, (split, numbers) in enumerate(splits.items(), start=1):
        axes = figure.add_subplot(len(splits), 1, at)
        lengths = list(numbers["rows_by_length"])
        bins = np.linspace(0.5, length + 0.5, min(length, PNG_BINS) + 1).tolist()
        axes.hist(lengths, bins=bins, weights=list(numbers["rows_by_length"].values()))
        axes.set(title=split, ylabel="rows", xlim=(0, length + 1))
        axes.set_yscale("log")
    axes.set_xlabel("tokens in the row")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def render(report: dict[str, Any], console: Console) -> None:
    """Show a report of `inspect` as tables."""
    tell(
        console,
        f"{report['folder']}: {report['format']}, rows of {report['sequence_length']} tokens, vocabulary of "
        f"{report['vocabulary_size']:,}, seed {report['seed']}, fingerprint {report['fingerprint']}",
    )
    console.print(sources_table(report["sources"]))
    console.print(splits_table(report["splits"]))
    for split, numbers in report["splits"].items():
        tell(console, f"\n{split}: row lengths")
        most = max(1, *(bin_["rows"] for bin_ in numbers["length_histogram"]))
        for bin_ in numbers["length_histogram"]:
            bar = "█" * round(BAR_WIDTH * bin_["rows"] / most)
            tell(console, f"{bin_['from']:>6}-{bin_['to']:<6}{bar} {bin_['rows']:,}")
        tell(console, f"\n{split}: most frequent tokens")
        for top in numbers["top_tokens"][:TOP_SHOWN]:
            tell(console, f"{top['share']:>9.2%}  {top['token']}")
        if numbers["around_unknown"]:
            tell(console, f"\n{split}: unknown tokens, with the text around them")
            for text in numbers["around_unknown"]:
                tell(console, f"  {text}")
        for sample in numbers["samples"]:
            for one in sample.get("sequences", [sample]):
                tell(console, "\n" + "\n".join(f"{key}: {one[key]}" for key in one if key != "masked"))
            console.print(Text("as trained: ").append(painted(sample["masked"])), soft_wrap=True)
            tell(console, f"to predict: {answers(sample['masked'])}")
    tell(console, "\nevery shard has the manifest's SHA-256" if report["intact"] else "\nDAMAGED:")
    for problem in report["problems"]:
        tell(console, f"  {problem}")


def sources_table(sources: list[dict[str, Any]]) -> Table:
    """Return what came from where."""
    table = Table(title="sources", title_justify="left")
    for name in ("source", "kind"):
        table.add_column(name, overflow="fold")
    for name in ("documents", "characters"):
        table.add_column(name, justify="right")
    table.add_column("dropped")
    for source in sources:
        counts = (f"{source['documents']:,}", f"{source['characters']:,}")
        table.add_row(source["name"], source["kind"], *counts, describe_counts([source["dropped"]]))
    return table


def splits_table(splits: dict[str, dict[str, Any]]) -> Table:
    """Return the numbers of the splits side by side."""
    shown = {
        "documents": ",",
        "rows": ",",
        "sequences": ",",
        "tokens": ",",
        "fill": ".1%",
        "distinct_tokens": ",",
        "unknown_share": ".3%",
        "random_next_share": ".1%",
        "shards": ",",
        "bytes": ",",
    }
    table = Table("", title="splits", title_justify="left")
    for split in splits:
        table.add_column(split, justify="right")
    for name, form in shown.items():
        if all(name in numbers for numbers in splits.values()):
            table.add_row(
                name.replace("_", " "), *(format(numbers[name], form) for numbers in splits.values())
            )
    return table
