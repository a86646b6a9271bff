"""The recipe of `sparse-pretrain data prepare`."""

import codecs
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sparse_pretrain.config.base import Section, UserPath
from sparse_pretrain.data.manifest import WITH_SEQUENCES, RowFormat


def default_workers() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


class WikipediaDump(Section):
    """A MediaWiki XML export (`…-pages-articles.xml`, plain, .bz2, .zst, .gz or .xz); an article a document.

    A .bz2, multistream or not, is read in parallel by its blocks and needs no index.
    """

    kind: Literal["wikipedia_dump"]
    path: UserPath = Field(description="a file, or files by wildcards: `enwiki-…-articles*.xml-*.bz2`")


class Books(Section):
    """A folder of plain-text files, each a document; Project Gutenberg's header and licence are cut off."""

    kind: Literal["books"]
    path: UserPath
    pattern: str = Field("**/*.txt", description="which files under `path`")
    encoding: str | None = Field(None, description="of every file; default: found out, file by file")

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str | None) -> str | None:
        try:
            return encoding and codecs.lookup(encoding).name
        except LookupError:
            raise ValueError("Python knows no such encoding") from None


class ParagraphsJson(Section):
    """A JSON file of documents: a list, an object's values, or one record a line (.jsonl)."""

    kind: Literal["paragraphs_json"]
    path: UserPath
    text_key: str = Field("text", description="key of a record's text; records may also be plain strings")


class JsonLines(Section):
    """Files with one JSON record a line, plain or compressed; each record is a document."""

    kind: Literal["jsonl"]
    path: UserPath = Field(description="a file, or files by wildcards")
    text_key: str = Field("text", description="key of a record's text; records may also be plain strings")


class CsvTable(Section):
    """CSV files with a header, plain or compressed; each row is a document."""

    kind: Literal["csv"]
    path: UserPath = Field(description="a file, or files by wildcards")
    text_column: str = "text"
    delimiter: str = Field(",", min_length=1, max_length=1)


class ParquetTable(Section):
    """Parquet files; each row is a document."""

    kind: Literal["parquet"]
    path: UserPath = Field(description="a file, or files by wildcards")
    text_column: str = "text"


class NamedDataset(Section):
    """A Hugging Face data set, streamed: a name on the hub, or a local folder."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    revision: str | None = Field(None, description="branch, tag or commit; the manifest pins the commit")
    rows_per_document: int = Field(1, ge=1, description="join this many rows: for sets with a sentence a row")


SourceSection = Annotated[
    WikipediaDump | Books | ParagraphsJson | JsonLines | CsvTable | ParquetTable | NamedDataset,
    Field(discriminator="kind"),
]


class CleaningSection(Section):
    """What else is done to the text; all of it optional."""

    repair_unicode: bool = Field(False, description="undo wrong decodings: `cafÃ©` becomes `café`")
    languages: list[str] = Field(
        [], description="ISO 639-1 codes; documents in others are dropped; empty: all stay"
    )

    @field_validator("languages")
    @classmethod
    def _are_codes(cls, languages: list[str]) -> list[str]:
        wrong = [code for code in languages if not (len(code) == 2 and code.isalpha() and code.islower())]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no ISO 639-1 code, such as en or de")
        return languages


class PairsSection(Section):
    """Segment pairs with next-sentence labels (Devlin et al. 2019, appendix A.2)."""

    short_sequence_probability: float = Field(0.1, ge=0, le=1, description="documents cut into shorter pairs")
    random_next_probability: float = Field(0.5, ge=0, le=1, description="pairs whose second part is foreign")
    window_tokens: int = Field(
        4_000_000, ge=1, description="foreign parts come from the last two windows of this size; sets memory"
    )


class PackedSection(Section):
    """Full rows: running text (Liu et al. 2019, section 4.2), or several sequences that do not see each other."""

    method: Literal["run_on", "best_fit"] = Field(
        "run_on",
        description="of packed; run_on: full to the last slot, documents broken wherever a row ends; best_fit: at "
        "least 98 % full, as few documents broken as that allows",
    )
    window_tokens: int = Field(4_000_000, ge=1, description="packed together, by all but run_on; sets memory")
    longest_sequence: int | None = Field(
        None,
        ge=1,
        description="packed_pairs, packed_documents: tokens of a sequence, special tokens included; default: a row",
    )
    whole_sentences: bool = Field(
        False,
        description="run_on, true: FULL-SENTENCES to the letter, a sentence is broken only when longer than a row",
    )


class PrepareRecipe(Section):
    """From sources to a prepared folder."""

    output: UserPath = Field(description="folder to make")
    work: UserPath | None = Field(
        None,
        description="folder of tokenized documents, kept for the next preparation: other rows, more sources; "
        "default: beside the output, deleted at the end",
    )
    overwrite: bool = Field(False, description="replace a folder prepared with other settings")
    sources: dict[str, SourceSection | None] = Field(
        description="by a name of your choice, read in this order; null leaves one out"
    )
    tokenizer: str = Field(description="folder or Hugging Face name of a fast tokenizer")
    format: RowFormat = Field(
        "pairs",
        description="pairs: one segment pair a row; packed: running text; packed_pairs, packed_documents: several "
        "sequences a row, attention inside each",
    )
    sequence_length: int = Field(ge=1, le=65_535, description="token slots of a row, special tokens included")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of documents held out, by hash")
    seed: int = Field(42, ge=0)
    minimum_characters: int = Field(100, ge=0, description="shorter documents are dropped")
    maximum_characters: int = Field(10_000_000, ge=1, description="longer documents are dropped")
    drop_duplicates: bool = Field(True, description="drop documents whose text came before")
    drop_near_duplicates: bool = Field(
        False, description="drop documents that share most of their word sequences with an earlier one"
    )
    cleaning: CleaningSection = CleaningSection()
    pairs: PairsSection = PairsSection()
    packed: PackedSection = PackedSection()
    rows_per_shard: int = Field(65_536, ge=1)
    workers: int = Field(
        default_factory=default_workers,
        ge=1,
        description="processes; default: every core",
    )

    @model_validator(mode="after")
    def _sequences_fit(self) -> "PrepareRecipe":
        longest = self.packed.longest_sequence
        if longest is None:
            return self
        if self.format not in WITH_SEQUENCES:
            raise ValueError(
                f"packed.longest_sequence: of no use with format {self.format}; use {' or '.join(WITH_SEQUENCES)}"
            )
        if longest > self.sequence_length:
            raise ValueError(
                f"packed.longest_sequence = {longest}: more than sequence_length = {self.sequence_length}"
            )
        return self

    @field_validator("sources")
    @classmethod
    def _has_a_source(cls, sources: dict[str, SourceSection | None]) -> dict[str, SourceSection | None]:
        if not any(sources.values()):
            raise ValueError("needs at least one source")
        return sources

    @property
    def work_folder(self) -> Path:
        """Where the stages before the last one keep what they have done."""
        return self.work or self.output.with_name(f".{self.output.name}.work")

    def text_settings(self) -> dict[str, Any]:
        """Return the settings that decide the tokenized documents."""
        keys = {"minimum_characters", "maximum_characters", "drop_near_duplicates", "cleaning"}
        return self.model_dump(mode="json", include=keys)

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that decide the rows: all but where to write and how many work on it."""
        return self.model_dump(mode="json", exclude={"output", "work", "overwrite", "workers"})
