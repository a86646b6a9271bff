"""Books, JSON files and local data sets."""

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.documents import Drop, Fault, Raw
from data_prep.gutenberg import strip_gutenberg
from data_prep.recipe import Books, CsvTable, JsonLines, NamedDataset, ParagraphsJson, ParquetTable
from data_prep.sources.books import BooksSource, book_text
from data_prep.sources.dataset import DatasetSource
from data_prep.sources.open import open_source
from sparse_pretrain.errors import UserError
from tests.data_prep.corpus import read_all

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
    texts = [source.extract(str(text)) for text in read_all(source)]
    assert texts == ["A line that goes on.\nNext paragraph.", "Second book."]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Café “naïve”".encode(encoding))
    assert read_all(books(tmp_path)) == ["Café “naïve”"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16", "Кто здесь?"),
        (
            "koi8-r",
            "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. "
            * 3,
        ),
        ("cp1251", "Все смешалось в доме Облонских. Жена узнала, что муж был в связи с гувернанткою. " * 3),
    ],
)
def test_other_scripts_are_recognised(tmp_path: Path, encoding: str, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read_all(books(tmp_path)) == [text]


def test_an_encoding_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Zażółć gęślą jaźń".encode("iso-8859-2"))
    source = BooksSource(Books(kind="books", path=tmp_path, encoding="latin2"))
    assert read_all(source) == ["Zażółć gęślą jaźń"]
    with pytest.raises(ValueError, match="knows no such encoding"):
        Books(kind="books", path=tmp_path, encoding="klingon")


def test_single_bad_bytes_do_not_spoil_a_book(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Größe ".encode() * 20 + b"\xff end")
    assert read_all(books(tmp_path)) == [Fault.BAD_ENCODING, "Größe " * 20 + "\ufffd end"]


def test_an_unreadable_book_and_a_huge_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.books.LARGEST_RECORD", 1000)
    for name, text in (("a", "Good."), ("b", "Gone."), ("c", "long " * 1000)):
        (tmp_path / f"{name}.txt").write_text(text)
    source = books(tmp_path)
    units = source.units()
    (tmp_path / "b.txt").unlink()
    found = [raw for unit in units for raw in source.read(unit)]
    assert found == [
        Raw("Good."),
        Raw("b.txt", Drop.DAMAGED, Fault.UNREADABLE_FILE),
        Raw("c.txt", Drop.TOO_LONG),
    ]


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


def read_json(path: Path, key: str = "text") -> list[str | Drop | Fault]:
    return read_all(open_source(ParagraphsJson(kind="paragraphs_json", path=path, text_key=key)))


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


def test_bad_json_lines_are_the_only_ones_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.paragraphs_json.LARGEST_RECORD", 1000)
    path = tmp_path / "a.jsonl"
    long = b'{"text": "' + b"x" * 5000 + b'"}\n'
    path.write_bytes(b'{"text": "One."}\n{broken\n' + long + b'{"text": "\xff."}\n{"text": "Last."}')
    assert read_json(path) == [
        "One.", Drop.DAMAGED, Drop.TOO_LONG, Fault.BAD_ENCODING, "\ufffd.", "Last.",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.jsonl.bz2"])
def test_compressed_lines_whole_and_cut_off(tmp_path: Path, name: str) -> None:
    draw = random.Random(1)
    texts = [f"{number} {draw.getrandbits(400):x}" for number in range(3000)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.compress}.get(
        name[-3:].strip("."), lambda data: bz2.compress(data, 1)
    )
    path = tmp_path / name
    path.write_bytes(pack(content))
    source = open_source(JsonLines(kind="jsonl", path=tmp_path / "a.jsonl.*"))
    assert read_all(source) == texts
    path.write_bytes(pack(content)[:-5000])
    found = read_all(source)
    good = [item for item in found if isinstance(item, str)]
    assert good == texts[: len(good)]
    # zstandard tells nothing of a missing end; what it gives ends in the middle of a record.
    assert len(good) > 1000 or "xz" in name
    assert {item for item in found if not isinstance(item, str)} <= {
        Drop.DAMAGED,
        Fault.TRUNCATED,
        Fault.DAMAGED_BLOCK,
    }
    assert Drop.DAMAGED in found or Fault.TRUNCATED in found


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,"One, with\na ""line"" break."\n2\n3,Caf\xe9\n4,\n\n5,Five.\n')
    source = open_source(CsvTable(kind="csv", path=path))
    assert read_all(source) == [
        'One, with\na "line" break.', Drop.DAMAGED, Fault.BAD_ENCODING, "Caf\ufffd", "", "Five.",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"a\.csv: no column 'body'; its columns: id, text"):
        open_source(CsvTable(kind="csv", path=path, text_column="body"))
    with pytest.raises(UserError, match="no column"):
        open_source(CsvTable(kind="csv", path=path, delimiter=";"))


def test_parts_of_a_csv_give_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.sources.csv_table.CHUNK", 1000)
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "".join(f"Row {number}.\n" for number in range(3000)))
    source = open_source(CsvTable(kind="csv", path=path))
    assert len(source.units()) > 3
    assert sorted(map(str, read_all(source))) == sorted(f"Row {number}." for number in range(3000))


def test_parquet(tmp_path: Path) -> None:
    texts = [f"Row {number}." for number in range(10)] + [None]
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"text": texts, "n": range(11)}), tmp_path / f"{name}.parquet", row_group_size=4
        )
    source = open_source(ParquetTable(kind="parquet", path=tmp_path / "*.parquet"))
    assert len(source.units()) == 6
    assert read_all(source) == ([*texts[:-1], Drop.NO_TEXT] * 2)
    with pytest.raises(UserError, match="no column 'body'; its columns: text, n"):
        open_source(ParquetTable(kind="parquet", path=tmp_path / "a.parquet", text_column="body"))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-50])
    assert read_all(source)[11:] == [Fault.UNREADABLE_FILE, Drop.DAMAGED]
    with pytest.raises(UserError, match=r"b\.parquet: not a Parquet file, or truncated"):
        open_source(ParquetTable(kind="parquet", path=tmp_path / "b.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{broken", "not valid JSON"),
        ("a.json", "3", "holds a int; need a list or an object"),
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
    assert read_all(dataset(json_dataset, text_column="body")) == [f"Row {number}." for number in range(5)]


def test_rows_join_to_documents(json_dataset: Path) -> None:
    found = read_all(dataset(json_dataset, text_column="body", rows_per_document=2))
    assert found == ["Row 0.\nRow 1.", "Row 2.\nRow 3.", "Row 4."]


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["One.", "Two."]}).save_to_disk(str(tmp_path / "saved"))
    assert read_all(dataset(tmp_path / "saved")) == ["One.", "Two."]


def test_dataset_mistakes(json_dataset: Path) -> None:
    with pytest.raises(UserError, match="no column 'text'; its columns: title, body"):
        read_all(dataset(json_dataset))
    with pytest.raises(UserError, match="cannot be read: ") as error:
        read_all(dataset(json_dataset, split="test", text_column="body"))
    assert "\n" not in str(error.value)


def test_the_datasets_fingerprint_follows_its_files(json_dataset: Path) -> None:
    first = dataset(json_dataset).fingerprint()
    assert first != dataset(json_dataset, rows_per_document=2).fingerprint()
    (json_dataset / "train.jsonl").write_text('{"text": "other"}')
    assert first != dataset(json_dataset).fingerprint()
