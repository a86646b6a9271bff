"""The whole of data preparation: from a recipe to a prepared folder."""

from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from rich.console import Console

from data_prep.documents import Document, Drop, split_of
from data_prep.parallel import Workers
from data_prep.progress import SourceProgress, tell
from data_prep.recipe import PrepareRecipe
from data_prep.resume import finished_before
from data_prep.sources.base import Source
from data_prep.sources.open import open_source
from data_prep.split_output import SplitOutput
from data_prep.staging import staging_folder
from data_prep.tally import Tally, describe_drops
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer
from data_prep.work import Processor, batches
from sparse_pretrain.data.manifest import Manifest, Split, SplitCounts, write_manifest
from sparse_pretrain.data.manifest import Source as SourceEntry
from sparse_pretrain.errors import UserError

SPLITS: tuple[Split, ...] = get_args(Split)
LIBRARIES = (
    "sparse-pretrain",
    "mwxml",
    "mwparserfromhell",
    "nupunkt",
    "tokenizers",
    "transformers",
    "pyarrow",
)


def prepare(recipe: PrepareRecipe, console: Console) -> Manifest:
    """Make the prepared folder that a recipe describes, or find it made already.

    The same sources and seed give the same bytes, whatever the number of workers. A run that fails or is
    killed leaves nothing at `output`.

    Args:
        recipe: what to prepare.
        console: where progress and a line a source are shown.

    Returns:
        The manifest, as written.

    Raises:
        UserError: an input is missing, damaged or empty, the tokenizer does not serve, rows are too short
            for it, a split would have no rows, or `output` holds something else.
    """
    sources = [open_source(section) for section in recipe.sources.values() if section is not None]
    tokenizer = load_tokenizer(recipe.tokenizer)
    check_sequence_length(recipe, tokenizer)
    hashes = [source.fingerprint() for source in sources]
    manifest = finished_before(recipe, hashes, tokenizer.sha256)
    if manifest is not None:
        tell(console, f"{recipe.output}: already prepared from the same sources and settings; nothing to do")
        return manifest
    with staging_folder(recipe.output) as folder:
        manifest = build(recipe, sources, hashes, tokenizer, folder, console)
        write_manifest(folder, manifest)
    for split, counts in manifest.splits.items():
        tell(
            console,
            f"{recipe.output}/{split}: {counts.documents:,} documents, {counts.rows:,} rows, "
            f"{counts.tokens:,} tokens, {manifest.fill(split):.1%} full",
        )
    return manifest


def check_sequence_length(recipe: PrepareRecipe, tokenizer: LoadedTokenizer) -> None:
    """Check that a row holds the special tokens and some text.

    Raises:
        UserError: it does not.
    """
    template, text = (tokenizer.pair, 2) if recipe.format == "pairs" else (tokenizer.single, 1)
    if recipe.sequence_length < template.size + text:
        raise UserError(
            f"sequence_length = {recipe.sequence_length}: must be at least {template.size + text}: this tokenizer "
            f"puts {template.size} special tokens into every row"
        )


def build(
    recipe: PrepareRecipe,
    sources: list[Source],
    hashes: list[str],
    tokenizer: LoadedTokenizer,
    folder: Path,
    console: Console,
) -> Manifest:
    """Write shards and tokenizer to `folder` and return the manifest that describes them."""
    outputs = {split: SplitOutput(recipe, tokenizer, folder, split) for split in SPLITS}
    tallies = [Tally() for _ in sources]
    make = partial(Processor, tokenizer.definition, tokenizer.vocabulary_size, recipe.minimum_characters)
    seen: set[int] | None = set() if recipe.drop_duplicates else None
    with Workers(make, recipe.workers) as workers, SourceProgress(console) as progress:
        for source, tally in zip(sources, tallies, strict=True):
            progress.start(source)
            for results in workers.map(batches(source.extract, source.read())):
                for document in kept(results, seen, tally):
                    outputs[split_of(document.identity, recipe.validation_fraction)].add(document)
                progress.update(source, tally, sum(output.writer.rows for output in outputs.values()))
            progress.finish(source, tally)
    entries = [
        SourceEntry(
            kind=source.kind,
            name=source.name,
            sha256=digest,
            documents=tally.documents,
            characters=tally.characters,
            dropped=tally.dropped_by_reason(),
        )
        for source, digest, tally in zip(sources, hashes, tallies, strict=True)
    ]
    splits = {split: output.close() for split, output in outputs.items()}
    check_not_empty(recipe, entries, splits)
    tokenizer.save(folder / "tokenizer")
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


def kept(results: Iterable[Document | Drop], seen: set[int] | None, tally: Tally) -> Iterator[Document]:
    """Yield the documents to keep, the first of each text, and count everything.

    Args:
        results: of a worker.
        seen: identities of the documents before, some 70 bytes each; None keeps duplicates.
        tally: of the source.
    """
    for result in results:
        if isinstance(result, Drop):
            tally.dropped[result] += 1
        elif seen is not None and result.identity in seen:
            tally.dropped[Drop.DUPLICATE] += 1
        else:
            if seen is not None:
                seen.add(result.identity)
            tally.keep(result)
            yield result


def check_not_empty(
    recipe: PrepareRecipe, sources: list[SourceEntry], splits: dict[Split, SplitCounts]
) -> None:
    """Check that there is something to train on and something to hold out.

    Raises:
        UserError: there is not.
    """
    documents = sum(source.documents for source in sources)
    if not documents:
        raise UserError(
            f"no documents left; dropped: {describe_drops(source.dropped for source in sources)} "
            f"(minimum_characters = {recipe.minimum_characters})"
        )
    for split, counts in splits.items():
        if not counts.rows:
            raise UserError(
                f"the {split} split has no rows: {documents:,} documents are too few for "
                f"validation_fraction = {recipe.validation_fraction}; add text, or move the fraction towards 0.5"
            )
