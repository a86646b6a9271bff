"""Documents in the rows of Parquet files."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.documents import Drop, Fault, Raw
from data_prep.recipe import ParquetTable
from data_prep.sources.base import Source, Unit, files_of
from data_prep.sources.hashing import hash_files
from data_prep.sources.paragraphs_json import plain
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_json

ROWS_AT_ONCE = 256
# Workers see damage only where they read; the footer, which a cut-off file lacks, is read at once.
ERRORS = (pa.ArrowException, OSError)


class ParquetSource(Source):
    """One column of Parquet files, a row group a unit."""

    kind = "parquet"

    def __init__(self, section: ParquetTable) -> None:
        """Read the files' footers.

        Raises:
            UserError: there is no readable file, or one has no such column.
        """
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = str(section.path)
        self.paths = files_of(section.path)
        self.column = section.text_column
        self.extract = plain
        problem = None
        for path in self.paths:
            try:
                columns = pq.read_schema(path).names
            except ERRORS as error:
                problem = f"{path}: not a Parquet file, or truncated ({str(error).splitlines()[0]})"
                continue
            if self.column not in columns:
                raise UserError(f"{path}: no column {self.column!r}; its columns: {', '.join(columns)}")
            break
        else:
            raise UserError(str(problem))

    def fingerprint(self) -> str:
        """Return the hash of the files and of what is read of them."""
        return sha256_json([hash_files(self.paths), self.column])

    def units(self) -> list[Unit]:
        """Return the row groups; a file that cannot be read is one unit, which says so."""
        found = []
        for path in self.paths:
            try:
                groups = pq.ParquetFile(path).metadata.num_row_groups
            except ERRORS:
                groups = 0
            size = path.stat().st_size // max(1, groups)
            found += [Unit(size, (path, group)) for group in (range(groups) if groups else [None])]
        return found

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield the column's values."""
        path, group = unit.where
        if group is None:
            yield Raw(path.name, Drop.DAMAGED, Fault.UNREADABLE_FILE)
            return
        try:
            file = pq.ParquetFile(path)
            if self.column not in file.schema_arrow.names:
                raise UserError(f"{path}: no column {self.column!r}")
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self.column]):
                for value in batch.column(0).to_pylist():
                    yield Raw(value) if isinstance(value, str) else Raw(drop=Drop.NO_TEXT)
        except ERRORS:
            yield Raw(f"{path.name}, row group {group}", Drop.DAMAGED, Fault.DAMAGED_BLOCK)
