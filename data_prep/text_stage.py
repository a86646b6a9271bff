"""The first stage: each source to tokenized documents, kept under a key of everything that decides them."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from datatrove.pipeline.base import PipelineStep

from data_prep.clean import clean, long_enough, repair_unicode
from data_prep.documents import Fault
from data_prep.engine import Engine, Job
from data_prep.language import in_languages
from data_prep.progress import StageProgress
from data_prep.recipe import PrepareRecipe
from data_prep.sources.base import Source, Unit
from data_prep.text_steps import ReadUnit, Text, Tokenize, WriteTokens, unit_file
from data_prep.tokenizer import LoadedTokenizer
from sparse_pretrain.files import sha256_json, write_text

# Raised when the same settings and sources give other documents than before.
VERSION = 1


class SourceWork(NamedTuple):
    """A source, its units, and the folder of what comes out of it."""

    source: Source
    units: list[Unit]
    key: str
    folder: Path

    def unit_files(self) -> list[Path]:
        """Return the files of the tokenized documents, in the source's order."""
        return [unit_file(self.folder, number) for number in range(len(self.units))]


def source_work(
    recipe: PrepareRecipe, source: Source, digest: str, tokenizer: LoadedTokenizer, place: Path
) -> SourceWork:
    """Return what there is to do for a source.

    Args:
        recipe: its text settings are part of the key.
        source: opened.
        digest: of its content.
        tokenizer: part of the key too.
        place: the work folder.

    Raises:
        UserError: the source cannot be read at all.
    """
    units = source.units()
    described = {
        "version": VERSION,
        "source": [source.kind, source.reading, digest, [unit.size for unit in units]],
        "tokenizer": tokenizer.sha256,
        "text": recipe.text_settings(),
    }
    key = sha256_json(described)[:16]
    return SourceWork(source, units, key, place / f"tokens-{key}")


def tokenize_source(
    recipe: PrepareRecipe,
    work: SourceWork,
    tokenizer: LoadedTokenizer,
    engine: Engine,
    progress: StageProgress,
) -> None:
    """Make the source's tokenized documents, as far as they are not there already."""
    definition = work.folder / "tokenizer.json"
    if not definition.is_file():
        write_text(definition, tokenizer.definition)
    pipeline = text_pipeline(recipe, work, definition, tokenizer.vocabulary_size)
    job = Job(f"read {work.source.kind}", pipeline, len(work.units), work.folder)
    engine.run(job, progress.stage(work.source.kind, [unit.size for unit in work.units], "bytes"))


def text_pipeline(
    recipe: PrepareRecipe, work: SourceWork, definition: Path, vocabulary_size: int
) -> list[PipelineStep]:
    """Return the steps from raw documents to a file of tokens."""
    wanted = frozenset(recipe.cleaning.languages)
    return [
        ReadUnit(work.source, work.units, recipe.maximum_characters),
        Text("extract", work.source.extract),
        *(
            [Text("unicode", repair_unicode, Fault.REPAIRED_UNICODE)]
            if recipe.cleaning.repair_unicode
            else []
        ),
        Text("clean", clean),
        Text("length", partial(long_enough, minimum=recipe.minimum_characters)),
        *([Text("language", partial(in_languages, languages=wanted))] if wanted else []),
        Tokenize(definition, vocabulary_size, recipe.drop_near_duplicates),
        WriteTokens(work.folder, vocabulary_size),
    ]
