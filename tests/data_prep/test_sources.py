"""Books, JSON files and local data sets."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_prep.documents import Drop
from data_prep.gutenberg import strip_gutenberg
from data_prep.recipe import Books, NamedDataset, ParagraphsJson
from data_prep.sources.books import BooksSource, book_text
from data_prep.sources.dataset import DatasetSource
from data_prep.sources.paragraphs_json import ParagraphsJsonSource
from sparse_pretrain.errors import UserError

MODERN = """The Project Gutenberg eBook of Hamlet

Title: Hamlet

*** START OF THE PROJECT GUTENBERG EBOOK HAMLET ***

Who's there?

Nay, answer me.

*** END OF THE PROJECT GUTENBERG EBOOK HAMLET ***

Updated editions will replace the previous one.
"""
OLD = """Project Gutenberg Etext of Hamlet

Please take a look at the important information in this header.

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*

Who's there?

Nay, answer me.

End of Project Gutenberg Etext of Hamlet
"""


@pytest.mark.parametrize("book", [MODERN, OLD, MODERN.replace("\n", "\r\n")], ids=["modern", "old", "dos"])
def test_gutenbergs_header_and_licence_go(book: str) -> None:
    assert book_text(book) == "Who's there?\nNay, answer me."


def test_a_book_that_mentions_gutenberg_stays_whole() -> None:
    text = "Johannes Gutenberg printed books. The end of Project Gutenberg is not near."
    assert strip_gutenberg(text) == text


def books(folder: Path, pattern: str = "**/*.txt") -> BooksSource:
    return BooksSource(Books(kind="books", path=folder, pattern=pattern))


def test_wrapped_lines_are_joined_and_books_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("Second book.")
    (tmp_path / "a.txt").write_text("A line\nthat goes on.\n \nNext   paragraph.\r\n")
    (tmp_path / "notes.md").write_text("not a book")
    source = books(tmp_path)
    texts = [source.extract(str(text)) for text in source.read()]
    assert texts == ["A line that goes on.\nNext paragraph.", "Second book."]
    assert source.position == source.total


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Café “naïve”".encode(encoding))
    assert list(books(tmp_path).read()) == ["Café “naïve”"]


def test_an_empty_book_is_dropped() -> None:
    assert book_text(" \n\n ") is Drop.NO_TEXT


def test_the_fingerprint_covers_names_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.")
    first = books(tmp_path).fingerprint()
    path.write_text("Two.")
    second = books(tmp_path).fingerprint()
    path.rename(tmp_path / "b.txt")
    assert len({first, second, books(tmp_path).fingerprint()}) == 3


def test_missing_books(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of books"):
        books(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no file matches '\*\.epub'"):
        books(tmp_path, "*.epub")
    with pytest.raises(UserError, match="pattern '/abs': "):
        books(tmp_path, "/abs")


def read_json(path: Path, key: str = "text") -> list[str | Drop]:
    return list(ParagraphsJsonSource(ParagraphsJson(kind="paragraphs_json", path=path, text_key=key)).read())


@pytest.mark.parametrize(
    "content",
    [
        {"One": {"extract": "First."}, "Two": {"extract": "Second."}, "Three": {"title": "none"}},
        [{"extract": "First."}, "Second.", 3],
    ],
    ids=["object", "list"],
)
def test_json_documents(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert read_json(path, "extract") == ["First.", "Second.", Drop.NO_TEXT]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "First."}\n\n{"text": "Second."}\n{"text": null}\n')
    assert read_json(path) == ["First.", "Second.", Drop.NO_TEXT]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{broken", "not valid JSON"),
        ("a.json", "3", "holds a int; need a list or an object"),
        ("a.jsonl", '{"text": "x"}\n{broken\n', "line 2: not valid JSON"),
    ],
)
def test_broken_json(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=rf"{name}: {message}"):
        read_json(path)


def dataset(folder: Path, **settings: Any) -> DatasetSource:
    return DatasetSource(NamedDataset(kind="dataset", name=str(folder), **settings))


@pytest.fixture
def json_dataset(tmp_path: Path) -> Path:
    """A folder that `datasets` reads as a data set of five rows."""
    folder = tmp_path / "set"
    folder.mkdir()
    lines = [json.dumps({"title": str(number), "body": f"Row {number}."}) for number in range(5)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def test_a_local_dataset(json_dataset: Path) -> None:
    assert list(dataset(json_dataset, text_column="body").read()) == [f"Row {number}." for number in range(5)]


def test_rows_join_to_documents(json_dataset: Path) -> None:
    found = list(dataset(json_dataset, text_column="body", rows_per_document=2).read())
    assert found == ["Row 0.\nRow 1.", "Row 2.\nRow 3.", "Row 4."]


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["One.", "Two."]}).save_to_disk(str(tmp_path / "saved"))
    assert list(dataset(tmp_path / "saved").read()) == ["One.", "Two."]


def test_dataset_mistakes(json_dataset: Path) -> None:
    with pytest.raises(UserError, match="no column 'text'; its columns: title, body"):
        list(dataset(json_dataset).read())
    with pytest.raises(UserError, match="cannot be read: ") as error:
        list(dataset(json_dataset, split="test", text_column="body").read())
    assert "\n" not in str(error.value)


def test_the_datasets_fingerprint_follows_its_files(json_dataset: Path) -> None:
    first = dataset(json_dataset).fingerprint()
    assert first != dataset(json_dataset, rows_per_document=2).fingerprint()
    (json_dataset / "train.jsonl").write_text('{"text": "other"}')
    assert first != dataset(json_dataset).fingerprint()
