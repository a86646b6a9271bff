"""The recipe of `sparse-pretrain data prepare`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from sparse_pretrain.config.base import Section
from sparse_pretrain.data.manifest import RowFormat

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class WikipediaDump(Section):
    """A MediaWiki XML export (`…-pages-articles.xml`, plain or .bz2); each article is a document."""

    kind: Literal["wikipedia_dump"]
    path: UserPath


class Books(Section):
    """A folder of plain-text files, each a document; Project Gutenberg's header and licence are cut off."""

    kind: Literal["books"]
    path: UserPath
    pattern: str = Field("**/*.txt", description="which files under `path`")


class ParagraphsJson(Section):
    """A JSON file of documents: a list, an object's values, or one record a line (.jsonl)."""

    kind: Literal["paragraphs_json"]
    path: UserPath
    text_key: str = Field("text", description="key of a record's text; records may also be plain strings")


class NamedDataset(Section):
    """A Hugging Face data set, streamed: a name on the hub, or a local folder."""

    kind: Literal["dataset"]
    name: str
    config: str | None = None
    split: str = "train"
    text_column: str = "text"
    revision: str | None = Field(None, description="branch, tag or commit; the manifest pins the commit")
    rows_per_document: int = Field(1, ge=1, description="join this many rows: for sets with a sentence a row")


SourceSection = Annotated[WikipediaDump | Books | ParagraphsJson | NamedDataset, Field(discriminator="kind")]


class PairsSection(Section):
    """Segment pairs with next-sentence labels (Devlin et al. 2019, appendix A.2)."""

    short_sequence_probability: float = Field(0.1, ge=0, le=1, description="documents cut into shorter pairs")
    random_next_probability: float = Field(0.5, ge=0, le=1, description="pairs whose second part is foreign")
    window_tokens: int = Field(
        4_000_000, ge=1, description="foreign parts come from the last two windows of this size; sets memory"
    )


class PackedSection(Section):
    """Full rows that run on over sentences and documents (Liu et al. 2019, section 4.2)."""

    whole_sentences: bool = Field(
        False,
        description="true: FULL-SENTENCES to the letter, a sentence is broken only when longer than a row",
    )


class PrepareRecipe(Section):
    """From sources to a prepared folder."""

    output: UserPath = Field(description="folder to make")
    overwrite: bool = Field(False, description="replace a folder prepared with other settings")
    sources: dict[str, SourceSection | None] = Field(
        description="by a name of your choice, read in this order; null leaves one out"
    )
    tokenizer: str = Field(description="folder or Hugging Face name of a fast tokenizer")
    format: RowFormat = "pairs"
    sequence_length: int = Field(ge=1, le=65_535, description="token slots of a row, special tokens included")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of documents held out, by hash")
    seed: int = Field(42, ge=0)
    minimum_characters: int = Field(100, ge=0, description="shorter documents are dropped")
    drop_duplicates: bool = Field(True, description="drop documents whose text came before")
    pairs: PairsSection = PairsSection()
    packed: PackedSection = PackedSection()
    rows_per_shard: int = Field(65_536, ge=1)
    workers: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        description="processes; default: every core",
    )

    @field_validator("sources")
    @classmethod
    def _has_a_source(cls, sources: dict[str, SourceSection | None]) -> dict[str, SourceSection | None]:
        if not any(sources.values()):
            raise ValueError("needs at least one source")
        return sources

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that decide the rows: all but where to write and how many work on it."""
        return self.model_dump(mode="json", exclude={"output", "overwrite", "workers"})
