"""Documents of a Hugging Face data set, streamed."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_prep.documents import Drop, Raw
from data_prep.recipe import NamedDataset
from data_prep.sources.base import Source, Unit
from data_prep.sources.paragraphs_json import plain
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file, sha256_json

ROWS_IN_A_UNIT = 10_000


class DatasetSource(Source):
    """A name on the hub, a local folder of data files, or a folder made by `save_to_disk`."""

    kind = "dataset"

    def __init__(self, section: NamedDataset) -> None:
        """Pin the commit of a hub data set.

        Raises:
            UserError: it cannot be found.
        """
        self.section = section
        self.reading = section.model_dump(mode="json", exclude={"path", "name"})
        self.name = "/".join(part for part in (section.name, section.config, section.split) if part)
        self.extract = plain
        local = Path(section.name).expanduser()
        self.folder = local if local.is_dir() else None
        self.commit = None if self.folder else find_commit(section)

    def fingerprint(self) -> str:
        """Return the hash of a local folder's files, or of the hub's commit; either with what is read of it."""
        what = self.section.model_dump(exclude={"kind", "name", "revision"})
        if self.folder is None:
            return sha256_json([self.section.name, self.commit, what])
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return sha256_json(
            [what, [[path.relative_to(self.folder).as_posix(), sha256_file(path)] for path in files]]
        )

    def units(self) -> list[Unit]:
        """Return the data set's files, or runs of rows of one that was saved to disk."""
        try:
            rows = self.rows()
            if self.is_saved:
                step = ROWS_IN_A_UNIT * self.section.rows_per_document
                return [
                    Unit(min(step, len(rows) - start), (start, start + step))
                    for start in range(0, len(rows), step)
                ]
            return [Unit(1, (number, rows.num_shards)) for number in range(rows.num_shards)]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name}: cannot be read: {one_line(error)}") from error

    def read(self, unit: Unit) -> Iterator[Raw]:
        """Yield the text of each row, or of each `rows_per_document` rows in a line each."""
        texts = self.texts(unit)
        while group := list(islice(texts, self.section.rows_per_document)):
            found = [text for text in group if isinstance(text, str)]
            yield Raw("\n".join(found)) if found else Raw(drop=Drop.NO_TEXT)

    def texts(self, unit: Unit) -> Iterator[Any]:
        """Yield the text column's values."""
        column = self.section.text_column
        first, second = unit.where
        try:
            rows = self.rows()
            if self.is_saved:
                rows = rows.select(range(first, min(second, len(rows))))
            elif second > 1:
                rows = rows.shard(num_shards=second, index=first)
            for row in rows:
                if column not in row:
                    raise UserError(f"{self.name}: no column {column!r}; its columns: {', '.join(row)}")
                yield row[column]
        except UserError:
            raise
        except Exception as error:
            # The library raises errors of many kinds, down to those of Arrow, fsspec and the network.
            raise UserError(f"{self.name}: cannot be read: {one_line(error)}") from error

    @property
    def is_saved(self) -> bool:
        """Whether it is a folder made by `save_to_disk`."""
        return self.folder is not None and (self.folder / "state.json").is_file()

    def rows(self) -> Any:
        """Return the data set, streamed (memory-mapped when it was saved to disk)."""
        import datasets  # seconds to import, and only this source needs it

        if self.is_saved:
            return datasets.load_from_disk(str(self.folder))
        return datasets.load_dataset(
            str(self.folder or self.section.name),
            self.section.config,
            split=self.section.split,
            revision=self.commit,
            streaming=True,
        )


def find_commit(section: NamedDataset) -> str:
    """Ask the hub for the commit that `revision` means today, so that the manifest can name the data.

    Raises:
        UserError: no such data set, or no network.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(section.name, revision=section.revision).sha
    except Exception as error:
        raise UserError(
            f"{section.name}: no such folder, and not found on the hub: {one_line(error)}"
        ) from error
    if commit is None:
        raise UserError(f"{section.name}: the hub names no commit for it")
    return commit


def one_line(error: Exception) -> str:
    """Return an error's first line, or its kind when it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
