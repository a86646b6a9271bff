"""Read the columns of a labelled file or of a `datasets` split."""

import csv
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow
import pyarrow.parquet

from sparse_pretrain.checkpoint.folder import one_line
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import Columns
from sparse_pretrain.finetune.recipe import TaskSection

FIELD_LIMIT = 16 * 1024 * 1024


def read_columns(task: TaskSection, source: str) -> Columns:
    """Return the columns the task names of one file or split, rows filtered by `where`.

    Values are as the file has them: text from CSV and TSV, anything from JSONL, Parquet and datasets.

    Raises:
        UserError: missing or broken file, missing column, no row left.
    """
    wanted = wanted_columns(task)
    table = read_split(task, source, wanted) if task.dataset else read_file(task, source, wanted)
    where = describe(task, source)
    keep = [
        all(str(table[column][row]) == value for column, value in task.where.items())
        for row in range(len(table[task.label]))
    ]
    kept = {
        name: [value for value, kept in zip(values, keep, strict=True) if kept]
        for name, values in table.items()
    }
    if not kept[task.label]:
        filtered = (
            f" with {', '.join(f'{key} = {value}' for key, value in task.where.items())}"
            if task.where
            else ""
        )
        raise UserError(f"{where}: no rows{filtered}")
    return kept


def wanted_columns(task: TaskSection) -> dict[str, str]:
    """Return the columns a task needs, with the recipe key that names each."""
    return {**{column: f"where.{column}" for column in task.where}, **kind_of(task).columns()}


def describe(task: TaskSection, source: str) -> str:
    """Return how messages call a source."""
    if task.dataset is None:
        return source
    return f"dataset {task.dataset}{f'/{task.subset}' if task.subset else ''} [{source}]"


def check_columns(where: str, wanted: dict[str, str], present: Sequence[str]) -> None:
    """Refuse a column that is not there, naming those that are."""
    for column, key in wanted.items():
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(
                f"{where}: task.{key} = {column!r}: no such column; {hint}it has: {', '.join(map(str, present))}"
            )


def read_file(task: TaskSection, source: str, wanted: dict[str, str]) -> Columns:
    """Read a local file by its ending."""
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            return read_parquet(path, wanted)
        if path.suffix == ".json" and task.kind == "span":
            return collect(wanted, squad_rows(path, wanted))
        if path.suffix in (".jsonl", ".json"):
            return read_jsonl(path, wanted)
        if path.suffix in (".csv", ".tsv", ".txt"):
            return read_csv(path, wanted, task)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    raise UserError(f"{path}: unknown kind of file; one of .csv, .tsv, .jsonl, .parquet")


def read_csv(path: Path, wanted: dict[str, str], task: TaskSection) -> Columns:
    """Read a file of separated values, with a header or with `task.columns` as names."""
    delimiter = task.delimiter or ("\t" if path.suffix == ".tsv" else ",")
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if task.quoted else csv.QUOTE_NONE
    csv.field_size_limit(FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, quoting=quoting)
        try:
            header = task.columns or next(reader, [])
            check_columns(str(path), wanted, header)
            places = {column: header.index(column) for column in wanted}
            return collect(wanted, numbered_rows(path, reader, places))
        except csv.Error as error:
            raise UserError(f"{path}: line {reader.line_num}: {error}") from None


def numbered_rows(path: Path, reader: Any, places: dict[str, int]) -> Iterator[dict[str, str]]:
    """Yield the wanted fields of each row; empty lines are skipped, rows that are too short refused."""
    needed = max(places.values())
    for fields in reader:
        if not fields:
            continue
        if len(fields) <= needed:
            raise UserError(
                f"{path}: line {reader.line_num}: {len(fields)} fields, the columns need {needed + 1}"
            )
        yield {column: fields[place] for column, place in places.items()}


def read_jsonl(path: Path, wanted: dict[str, str]) -> Columns:
    """Read a file with one JSON object a line."""
    return collect(wanted, json_rows(path, wanted))


def json_rows(path: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the object of each line."""
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number}: not a JSON object")
            check_columns(f"{path}: line {number}", wanted, list(row))
            yield row


def squad_rows(path: Path, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield a row a question (`id`, `title`, `question`, `context`, `answers`) of a file as SQuAD publishes them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            {
                "id": question["id"],
                "title": article.get("title", ""),
                "question": question["question"],
                "context": paragraph["context"],
                "answers": question["answers"],
            }
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}: not JSON ({error.msg}); one object a line is .jsonl"
        ) from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: not SQuAD's form: data, paragraphs, context, qas, question, answers"
        ) from None
    for row in rows:
        check_columns(str(path), wanted, list(row))
        yield row


def read_parquet(path: Path, wanted: dict[str, str]) -> Columns:
    """Read the wanted columns of a Parquet file."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        check_columns(str(path), wanted, file.schema_arrow.names)
        columns: Columns = file.read(columns=list(wanted)).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: broken Parquet file ({one_line(error)})") from None
    return columns


def read_split(task: TaskSection, split: str, wanted: dict[str, str]) -> Columns:
    """Read a split of a `datasets` name; class numbers become class names."""
    import datasets

    where = describe(task, split)
    try:
        with quiet_libraries():
            data = datasets.load_dataset(task.dataset, task.subset, split=split)
    except Exception as error:  # the library raises its own, requests' and the file system's errors
        raise UserError(f"{where}: cannot be loaded ({one_line(error)})") from None
    check_columns(where, wanted, data.column_names)
    columns: Columns = {column: list(data[column]) for column in wanted}
    if task.kind == "choice":
        return columns  # the label is a place, whatever names its numbers have
    feature = data.features[task.label]
    inner = getattr(feature, "feature", None)
    if isinstance(feature, datasets.ClassLabel):
        columns[task.label] = [class_name(feature, value) for value in columns[task.label]]
    elif isinstance(inner, datasets.ClassLabel):
        columns[task.label] = [[class_name(inner, value) for value in row] for row in columns[task.label]]
    return columns


def class_name(feature: Any, value: int) -> str | None:
    """Return the name of a class number of `datasets`; None for -1, which test sets without labels have."""
    return feature.int2str(value) if value >= 0 else None


def collect(wanted: Iterable[str], rows: Iterable[dict[str, Any]]) -> Columns:
    """Turn rows into columns."""
    columns: Columns = {column: [] for column in wanted}
    for row in rows:
        for column, values in columns.items():
            values.append(row[column])
    return columns
