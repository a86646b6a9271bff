"""The whole of data preparation: from a recipe to a prepared folder."""

import errno
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from data_prep.engine import Engine, LocalEngine
from data_prep.parallel import warm_up
from data_prep.progress import StageProgress, describe_counts, describe_source, tell
from data_prep.recipe import PrepareRecipe
from data_prep.resume import finished_before
from data_prep.row_stage import build_rows
from data_prep.selection import Selection, document_at, select
from data_prep.sources.base import Source
from data_prep.sources.open import open_source
from data_prep.staging import discard, discarded, locked, staging_folder
from data_prep.text_stage import SourceWork, source_work, tokenize_source
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer
from sparse_pretrain.data.manifest import WITH_PAIRS, Manifest, Split, SplitCounts, write_manifest
from sparse_pretrain.data.manifest import Source as SourceEntry
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import write_json

LIBRARIES = (
    "sparse-pretrain",
    "datatrove",
    "mwparserfromhell",
    "nupunkt",
    "tokenizers",
    "transformers",
    "pyarrow",
)
DROPPED_FILE = "dropped.json"
SAMPLE_TOKENS = 40
DISK_ERRORS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


def prepare(recipe: PrepareRecipe, console: Console, engine: Engine | None = None) -> Manifest:
    """Make the prepared folder that a recipe describes, or find it made already.

    The same sources and seed give the same bytes, whatever the number of workers. A run that fails or is
    killed leaves nothing at `output`; run again, it continues where it was.

    Args:
        recipe: what to prepare.
        console: where progress and a line a source are shown.
        engine: what runs the tasks; default: this machine, with the recipe's `workers`.

    Returns:
        The manifest, as written.

    Raises:
        UserError: an input is missing, unreadable or empty, the tokenizer does not serve, rows are too short
            for it, a split would have no rows, `output` holds something else, or the disk is full.
        FailedError: a worker was killed.
    """
    sources = [open_source(section) for section in recipe.sources.values() if section is not None]
    if engine is None:
        warm_up(recipe.workers)
    tokenizer = load_tokenizer(recipe.tokenizer)
    check_sequence_length(recipe, tokenizer)
    hashes = [source.fingerprint() for source in sources]
    manifest = finished_before(recipe, hashes, tokenizer.sha256)
    if manifest is not None:
        forget_what_a_kill_left(recipe)
        tell(console, f"{recipe.output}: already prepared from the same sources and settings; nothing to do")
        return manifest
    # The work is removed under the lock too: it is the next run's as soon as that may begin.
    with locked(recipe.output):
        try:
            with staging_folder(recipe.output) as folder:
                if engine is None:
                    with LocalEngine(recipe.workers) as local:
                        manifest = build(recipe, sources, hashes, tokenizer, folder, console, local)
                else:
                    manifest = build(recipe, sources, hashes, tokenizer, folder, console, engine)
                write_manifest(folder, manifest)
        except UserError:
            forget_work(recipe)
            raise
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f"{error.filename or recipe.work_folder}: {DISK_ERRORS[error.errno]}; what is done is kept: "
                "make room and run again"
            ) from None
        forget_work(recipe)
    for split, counts in manifest.splits.items():
        tell(
            console,
            f"{recipe.output}/{split}: {counts.documents:,} documents, {counts.rows:,} rows, "
            f"{counts.tokens:,} tokens, {manifest.fill(split):.1%} full",
        )
    return manifest


def forget_work(recipe: PrepareRecipe) -> None:
    """Remove what only the next run of the same preparation would need."""
    if recipe.work is None:
        discard(recipe.work_folder)


def forget_what_a_kill_left(recipe: PrepareRecipe) -> None:
    """Remove the work of a run that was killed when its output was whole already."""
    if recipe.work is None and any(
        place.exists() for place in (recipe.work_folder, discarded(recipe.work_folder))
    ):
        # Locked: another process is about to replace the output, and the work is its own.
        with suppress(UserError), locked(recipe.output):
            forget_work(recipe)


def check_sequence_length(recipe: PrepareRecipe, tokenizer: LoadedTokenizer) -> None:
    """Check that a row holds the special tokens and some text.

    Raises:
        UserError: it does not.
    """
    template, text = (tokenizer.pair, 2) if recipe.format in WITH_PAIRS else (tokenizer.single, 1)
    longest = recipe.packed.longest_sequence
    key, slots = (
        ("sequence_length", recipe.sequence_length)
        if longest is None
        else ("packed.longest_sequence", longest)
    )
    if slots < template.size + text:
        raise UserError(
            f"{key} = {slots}: must be at least {template.size + text}: this tokenizer "
            f"puts {template.size} special tokens into every sequence"
        )


def build(
    recipe: PrepareRecipe,
    sources: list[Source],
    hashes: list[str],
    tokenizer: LoadedTokenizer,
    folder: Path,
    console: Console,
    engine: Engine,
) -> Manifest:
    """Fill `folder` with shards and tokenizer and return the manifest that describes them."""
    place = recipe.work_folder.absolute()
    works = [
        source_work(recipe, source, digest, tokenizer, place)
        for source, digest in zip(sources, hashes, strict=True)
    ]
    with StageProgress(console) as progress:
        for work in works:
            tokenize_source(recipe, work, tokenizer, engine, progress)
        selection = select(
            [work.unit_files() for work in works], recipe.drop_duplicates, recipe.drop_near_duplicates
        )
        entries = describe_sources(works, hashes, selection)
        for entry, tally in zip(entries, selection.tallies, strict=True):
            tell(console, describe_source(entry.name, tally))
        check_documents(recipe, entries)
        splits = build_rows(
            recipe, [work.key for work in works], selection, tokenizer, place, folder, engine, progress
        )
    check_rows(recipe, entries, splits)
    tokenizer.save(folder / "tokenizer")
    write_json(folder / DROPPED_FILE, samples_of_dropped(works, selection, tokenizer))
    return Manifest(
        format=recipe.format,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
        vocabulary_size=tokenizer.vocabulary_size,
        tokenizer_sha256=tokenizer.sha256,
        special_tokens=tokenizer.special,
        sources=entries,
        splits=splits,
        settings=recipe.row_settings(),
        versions={library: version(library) for library in LIBRARIES},
    ).with_fingerprint()


def samples_of_dropped(
    works: Sequence[SourceWork], selection: Selection, tokenizer: LoadedTokenizer
) -> dict[str, dict[str, list[str]]]:
    """Return by source and reason how a few of the dropped documents begin; duplicates as their tokens read."""
    samples: dict[str, dict[str, list[str]]] = {}
    for work, tally, duplicates in zip(works, selection.tallies, selection.duplicates, strict=True):
        own = samples.setdefault(work.source.name, {})
        own |= tally.samples
        for reason, numbers in duplicates.items():
            if numbers:
                documents = [document_at(selection.units, number) for number in numbers]
                own[reason.value] = [
                    tokenizer.tokenizer.decode(one.tokens[:SAMPLE_TOKENS]) for one in documents
                ]
    return samples


def describe_sources(
    works: Sequence[SourceWork], hashes: Sequence[str], selection: Selection
) -> list[SourceEntry]:
    """Return the manifest's entries."""
    return [
        SourceEntry(
            kind=work.source.kind,
            name=work.source.name,
            sha256=digest,
            documents=tally.documents,
            characters=tally.characters,
            dropped=tally.dropped,
            faults=tally.faults,
        )
        for work, digest, tally in zip(works, hashes, selection.tallies, strict=True)
    ]


def check_documents(recipe: PrepareRecipe, sources: list[SourceEntry]) -> None:
    """Check that there is something to train on.

    Raises:
        UserError: there is not.
    """
    if not any(source.documents for source in sources):
        faults = describe_counts([source.faults for source in sources])
        raise UserError(
            f"no documents left; dropped: {describe_counts([source.dropped for source in sources])} "
            + (f"; damaged: {faults} " if faults != "none" else "")
            + f"(minimum_characters = {recipe.minimum_characters})"
        )


def check_rows(recipe: PrepareRecipe, sources: list[SourceEntry], splits: dict[Split, SplitCounts]) -> None:
    """Check that there is something to train on and something to hold out.

    Raises:
        UserError: there is not.
    """
    documents = sum(source.documents for source in sources)
    for split, counts in splits.items():
        if not counts.rows:
            raise UserError(
                f"the {split} split has no rows: {documents:,} documents are too few for "
                f"validation_fraction = {recipe.validation_fraction}; add text, or move the fraction towards 0.5"
            )
