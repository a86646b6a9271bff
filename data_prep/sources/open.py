"""From a recipe's section to its reader."""

from data_prep.recipe import (
    Books,
    CsvTable,
    JsonLines,
    NamedDataset,
    ParagraphsJson,
    ParquetTable,
    SourceSection,
    WikipediaDump,
)
from data_prep.sources.base import Source
from data_prep.sources.books import BooksSource
from data_prep.sources.csv_table import CsvSource
from data_prep.sources.dataset import DatasetSource
from data_prep.sources.paragraphs_json import JsonLinesSource, open_json
from data_prep.sources.parquet import ParquetSource
from data_prep.sources.wikipedia_dump import WikipediaDumpSource


def open_source(section: SourceSection) -> Source:
    """Return the reader of a recipe's source.

    Raises:
        UserError: the source is missing or is not what `kind` says.
    """
    match section:
        case WikipediaDump():
            return WikipediaDumpSource(section)
        case Books():
            return BooksSource(section)
        case ParagraphsJson():
            return open_json(section)
        case JsonLines():
            return JsonLinesSource(section)
        case CsvTable():
            return CsvSource(section)
        case ParquetTable():
            return ParquetSource(section)
        case NamedDataset():
            return DatasetSource(section)
