"""The whole preparation, on a small dump and small books."""

import io
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
from data_prep.staging import locked
from data_prep.tokenizer import load_tokenizer
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.data.manifest import Manifest, Split, read_manifest
from sparse_pretrain.data.shards import PreparedSplit, Rows
from sparse_pretrain.errors import UserError
from tests.data_prep.corpus import ARTICLE_TEXT, SITE, page, prose

DROPPED = {
    "redirect": 1,
    "not_an_article": 1,
    "disambiguation": 2,
    "no_text": 1,
    "too_short": 1,
    "duplicate": 1,
}


class Preparation:
    """The tiny recipe on the small text, with changes."""

    def __init__(self, raw: Path, tokenizers: Path, output: Path) -> None:
        self.overrides = [
            f"sources.dump.path={raw / 'dump.xml.bz2'}",
            f"sources.books.path={raw / 'books'}",
            f"tokenizer={tokenizers / 'bert'}",
            f"output={output}",
        ]
        self.output = output
        self.raw = raw

    def recipe(self, *changes: str) -> PrepareRecipe:
        return load_recipe("data-tiny", [*self.overrides, *changes], PrepareRecipe)

    def run(self, *changes: str) -> Manifest:
        return prepare(self.recipe(*changes), Console(quiet=True))


@pytest.fixture
def preparation(raw: Path, tokenizers: Path, tmp_path: Path) -> Preparation:
    """Nothing prepared yet."""
    return Preparation(raw, tokenizers, tmp_path / "out")


def rows_of(folder: Path, split: Split) -> Rows:
    prepared = PreparedSplit(folder, split)
    return prepared.gather(np.arange(len(prepared)))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_says_what_happened(preparation: Preparation) -> None:
    manifest = preparation.run()
    assert manifest == read_manifest(preparation.output)
    dump, books = manifest.sources
    assert dump.dropped == DROPPED
    assert (dump.documents, books.documents, books.dropped) == (31, 6, {})
    assert manifest.splits["train"].documents + manifest.splits["validation"].documents == 37
    assert 0.5 < manifest.fill("train") <= 1
    assert manifest.vocabulary_size == load_tokenizer(str(preparation.output / "tokenizer")).vocabulary_size
    for split in ("train", "validation"):
        rows = rows_of(preparation.output, split)
        counts = manifest.splits[split]
        assert (len(rows.lengths), int(rows.lengths.sum())) == (counts.rows, counts.tokens)
        assert rows.tokens.max() < manifest.vocabulary_size
        padding = rows.tokens[np.arange(32) >= rows.lengths[:, None]]
        assert (padding == manifest.special_tokens.pad).all()
    assert len(manifest.splits["train"].shards) > 1


@pytest.mark.parametrize("row_format", ["pairs", "packed", "packed_pairs", "packed_documents"])
def test_same_bytes_again_and_with_more_workers(
    preparation: Preparation, row_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.parts.unit_size", lambda *_: 2000)
    monkeypatch.setattr("data_prep.row_steps.GROUP_TOKENS", 2000)
    settings = [f"format={row_format}", f"sources.dump.path={preparation.raw / 'dump.xml'}"]
    preparation.run(*settings)
    first = tree(preparation.output)
    for workers in (1, 2, 4) if row_format == "pairs" else (2,):
        shutil.rmtree(preparation.output)
        preparation.run(*settings, f"workers={workers}")
        assert tree(preparation.output) == first


@pytest.mark.parametrize("row_format", ["pairs", "packed", "packed_pairs"])
def test_all_shards_but_a_splits_last_are_of_one_size(
    preparation: Preparation, row_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.sources.parts.unit_size", lambda *_: 2000)
    settings = [f"format={row_format}", f"sources.dump.path={preparation.raw / 'dump.xml'}"]
    monkeypatch.setattr("data_prep.row_steps.GROUP_TOKENS", 1300)
    many = preparation.run(*settings, "rows_per_shard=30")
    rows = {split: rows_of(preparation.output, split) for split in many.splits}
    for split, counts in many.splits.items():
        sizes = [shard.rows for shard in counts.shards]
        assert sum(sizes) == counts.rows == len(rows[split].lengths)
        assert set(sizes[:-1]) <= {30}
        assert 0 < sizes[-1] <= 30
        files = sorted(f"{split}/{path.name}" for path in (preparation.output / split).iterdir())
        assert files == [shard.file for shard in counts.shards]
    assert len(many.splits["train"].shards) > 3
    shutil.rmtree(preparation.output)
    few = preparation.run(*settings, "rows_per_shard=100000")
    for split, counts in few.splits.items():
        assert len(counts.shards) == 1
        one = rows_of(preparation.output, split)
        assert sorted(map(tuple, one.tokens.tolist())) == sorted(map(tuple, rows[split].tokens.tolist()))
        assert int(one.lengths.sum()) == int(rows[split].lengths.sum()) == counts.tokens


def test_the_recipe_chooses_best_fit(preparation: Preparation) -> None:
    """Every token of every kept document once, and a document that fits into a row stays whole."""
    run_on = preparation.run("format=packed", "sequence_length=128")
    first = rows_of(preparation.output, "train")
    preparation.run("format=packed", "sequence_length=128", "packed.method=best_fit", "overwrite=true")
    best = rows_of(preparation.output, "train")
    special = run_on.special_tokens.never_masked

    def text(rows: Rows) -> list[int]:
        return sorted(rows.tokens[~np.isin(rows.tokens, special)].tolist())

    def whole(rows: Rows) -> int:
        """How many rows end with a document's last token, a full stop."""
        last = rows.tokens[np.arange(len(rows.lengths)), rows.lengths - 2]
        return int((last == load_tokenizer(str(preparation.output / "tokenizer")).tokenizer.vocab["."]).sum())

    assert text(best) == text(first)
    assert whole(best) / len(best.lengths) > whole(first) / len(first.lengths)


def test_a_second_run_meanwhile_leaves_the_first_ones_work_alone(preparation: Preparation) -> None:
    work = preparation.recipe().work_folder
    (work / "units").mkdir(parents=True)
    with locked(preparation.output), pytest.raises(UserError, match="another process is preparing it"):
        preparation.run()
    assert (work / "units").is_dir()


def test_work_that_a_late_kill_left_goes_with_the_next_run(preparation: Preparation) -> None:
    manifest = preparation.run()
    work = preparation.recipe().work_folder
    for left in (work, work.with_name(f"{work.name}.discarded")):
        left.mkdir()
    assert preparation.run() == manifest
    assert [path.name for path in preparation.output.parent.iterdir()] == ["out"]


def test_how_sources_are_cut_does_not_matter(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = preparation.run()
    shutil.rmtree(preparation.output)
    monkeypatch.setattr("data_prep.sources.parts.unit_size", lambda *_: 777)
    second = preparation.run()
    assert first.fingerprint == second.fingerprint
    assert first.sources == second.sources


def test_tokenized_documents_serve_other_rows_and_more_sources(
    preparation: Preparation, tmp_path: Path, raw: Path
) -> None:
    work = tmp_path / "work"
    preparation.run(f"work={work}")
    made = {path: path.stat().st_mtime_ns for path in work.rglob("*.arrow")}
    assert made
    manifest = preparation.run(f"work={work}", "sequence_length=48", "format=packed", "overwrite=true")
    assert manifest.sequence_length == 48
    more = tmp_path / "more"
    more.mkdir()
    (more / "one.txt").write_text(prose(5000, 20))
    preparation.run(f"work={work}", "overwrite=true", f"sources.more={{kind: books, path: {more}}}")
    again = {path: path.stat().st_mtime_ns for path in work.rglob("*.arrow")}
    assert {path: again[path] for path in made} == made
    assert len(again) == len(made) + 1


def test_another_seed_gives_other_pairs_and_the_same_split(preparation: Preparation) -> None:
    first = preparation.run()
    second = preparation.run("seed=7", "overwrite=true")
    assert first.fingerprint != second.fingerprint
    assert {split: counts.documents for split, counts in first.splits.items()} == {
        split: counts.documents for split, counts in second.splits.items()
    }


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("row_format", ["pairs", "packed"])
def test_tokenizers_of_each_family(
    preparation: Preparation, tokenizers: Path, family: str, row_format: str
) -> None:
    manifest = preparation.run(f"tokenizer={tokenizers / family}", f"format={row_format}")
    rows = rows_of(preparation.output, "train")
    special = manifest.special_tokens
    assert (rows.tokens[:, 0] == special.cls).all()
    last = rows.tokens[np.arange(len(rows.lengths)), rows.lengths - 1]
    assert (last == special.sep).all()
    if row_format == "pairs":
        assert rows.second_start is not None
        assert rows.random_next is not None
        separators = 2 if family == "roberta" else 1
        positions = rows.second_start[:, None] - np.arange(1, separators + 1)
        assert (np.take_along_axis(rows.tokens, positions, axis=1) == special.sep).all()
        assert (rows.second_start < rows.lengths - 1).all()
        assert 0 < rows.random_next.mean() < 1


@pytest.mark.parametrize("row_format", ["packed", "packed_documents"])
def test_every_token_of_every_kept_document_is_in_the_packed_rows_once(
    preparation: Preparation, raw: Path, row_format: str
) -> None:
    manifest = preparation.run(f"format={row_format}")
    tokenizer = load_tokenizer(str(preparation.output / "tokenizer")).tokenizer
    kept = [ARTICLE_TEXT, *(prose(seed, 12) for seed in range(30))]
    kept += [path.read_text() for path in (raw / "books").iterdir()]
    special = (manifest.special_tokens.cls, manifest.special_tokens.sep, manifest.special_tokens.pad)
    expected = Counter(chain.from_iterable(tokenizer(kept, add_special_tokens=False)["input_ids"]))
    found: Counter[int] = Counter()
    for split in ("train", "validation"):
        found.update(rows_of(preparation.output, split).tokens.flatten().tolist())
    assert {token: count for token, count in found.items() if token not in special} == expected


def test_the_split_is_disjoint_by_document_and_stays_when_sources_grow(
    preparation: Preparation, tmp_path: Path
) -> None:
    preparation.run("format=packed")
    small = {split: beginnings(preparation.output, split) for split in ("train", "validation")}
    assert not small["train"] & small["validation"]
    assert len(small["train"] | small["validation"]) == 60
    more = tmp_path / "more"
    more.mkdir()
    for seed in range(5000, 5020):
        (more / f"{seed}.txt").write_text(prose(seed, 8))
    preparation.run("format=packed", "overwrite=true", f"sources.more={{kind: books, path: {more}}}")
    large = {split: beginnings(preparation.output, split) for split in ("train", "validation")}
    assert small["train"] < large["train"]
    assert small["validation"] <= large["validation"]
    assert not large["train"] & large["validation"]


def beginnings(folder: Path, split: Split) -> set[str]:
    """The numbers of the paragraphs ("Text 12 begins here.") in a split."""
    tokenizer = load_tokenizer(str(folder / "tokenizer")).tokenizer
    rows = rows_of(folder, split)
    special = read_manifest(folder).special_tokens.never_masked
    text = tokenizer.decode([int(token) for row in rows.tokens for token in row if token not in special])
    words = text.split()
    return {
        words[at - 1] for at, word in enumerate(words) if words[at : at + 2] == ["begins", "here."] and word
    }


def test_duplicates_can_be_kept(preparation: Preparation) -> None:
    manifest = preparation.run("drop_duplicates=false")
    assert manifest.sources[0].documents == 32
    assert "duplicate" not in manifest.sources[0].dropped


def test_prepared_already(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = preparation.run()
    monkeypatch.setattr("data_prep.prepare.build", None)
    output = io.StringIO()
    again = prepare(preparation.recipe("workers=2", "overwrite=true"), Console(file=output))
    assert again == manifest
    assert "already prepared" in output.getvalue()


def test_other_settings_need_overwrite(preparation: Preparation) -> None:
    preparation.run()
    before = tree(preparation.output)
    with pytest.raises(UserError, match=r"sequence_length was 32, is 48.*overwrite=true"):
        preparation.run("sequence_length=48")
    assert tree(preparation.output) == before
    assert preparation.run("sequence_length=48", "overwrite=true").sequence_length == 48


def test_changed_sources_and_damaged_shards_are_noticed(preparation: Preparation, tmp_path: Path) -> None:
    books = tmp_path / "books"
    books.mkdir()
    for seed in range(20):
        (books / f"{seed}.txt").write_text(prose(seed, 8))
    only_books = ("sources.dump=null", f"sources.books.path={books}")
    manifest = preparation.run(*only_books)
    (books / "new.txt").write_text(prose(99, 8))
    with pytest.raises(UserError, match="the sources' content changed"):
        preparation.run(*only_books)
    (books / "new.txt").unlink()
    preparation.run(*only_books)
    (preparation.output / manifest.splits["train"].shards[0].file).write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-00000\.arrow is missing or cut off"):
        preparation.run(*only_books)


def test_a_folder_of_something_else_is_never_overwritten(preparation: Preparation) -> None:
    preparation.output.mkdir()
    (preparation.output / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a prepared folder; choose another"):
        preparation.run("overwrite=true")
    assert (preparation.output / "thesis.tex").read_text() == "years of work"


def test_a_truncated_dump_leaves_nothing(preparation: Preparation, raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.bz2"
    content = (raw / "dump.xml.bz2").read_bytes()
    path.write_bytes(content[: len(content) - 20])
    before = sorted(tmp_path.iterdir())
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"cut\.bz2: truncated") as error:
            preparation.run(f"sources.dump.path={path}", f"workers={workers}")
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sources.dump.path=gone.xml"], r"gone\.xml: no such file"),
        (["tokenizer=./gone"], r"tokenizer = \./gone: no such folder"),
        (["sequence_length=4"], "sequence_length = 4: must be at least 5"),
        (["sequence_length=2", "format=packed"], "sequence_length = 2: must be at least 3"),
        (
            ["minimum_characters=100000"],
            r"no documents left; dropped: .*39 too_short.*minimum_characters = 100000",
        ),
        (["validation_fraction=0.0001"], "the validation split has no rows: 37 documents are too few"),
    ],
)
def test_mistakes_in_one_line_and_nothing_written(
    preparation: Preparation, tmp_path: Path, changes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        preparation.run(*changes)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_corpus_counts_its_reasons(preparation: Preparation, tmp_path: Path) -> None:
    dump = tmp_path / "dump.xml"
    dump.write_text(SITE + page("A", ["#REDIRECT [[B]]"]) + page("B", [""]) + "</mediawiki>")
    with pytest.raises(UserError, match="no documents left; dropped: 1 redirect, 1 no_text"):
        preparation.run(f"sources.dump.path={dump}", "sources.books=null")


def test_the_console_hears_of_every_source_and_split(preparation: Preparation) -> None:
    output = io.StringIO()
    prepare(preparation.recipe(), Console(file=output))
    text = output.getvalue()
    assert "31 documents" in text
    assert "2 disambiguation" in text
    assert text.count("% full") == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sources=null", "sources"),
        (
            "sources.dump.kind=epub",
            "'wikipedia_dump', 'books', 'paragraphs_json', 'jsonl', 'csv', 'parquet', 'dataset'",
        ),
        ("sources.dump.pth=x", "sources.dump.pth: unknown key"),
        ("validation_fraction=1.5", "validation_fraction = 1.5: should be less than 1"),
        ("sequence_length=70000", "sequence_length = 70000"),
        ("format=triples", "format"),
        ("packed.longest_sequence=16", "packed.longest_sequence: of no use with format pairs"),
        ("workers=0", "workers = 0"),
    ],
)
def test_recipe_mistakes_name_the_key(preparation: Preparation, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        preparation.recipe(override)


@pytest.mark.parametrize(
    "name",
    [
        "data-demo",
        "data-tiny",
        "data-wikipedia-books-128",
        "data-wikipedia-books-512",
        "data-wikipedia-books-512-packed-pairs",
    ],
)
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name, [], PrepareRecipe)
    assert recipe.pairs.model_dump() == {
        "short_sequence_probability": 0.1,
        "random_next_probability": 0.5,
        "window_tokens": 4_000_000,
    }
    if "wikipedia" in name:
        assert recipe.format == ("packed_pairs" if "packed" in name else "pairs")
        assert recipe.validation_fraction == 0.05
        assert str(recipe.sequence_length) in name


def test_the_demos_recipe_follows_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE_PRETRAIN_CACHE", str(tmp_path))
    recipe: Any = load_recipe("data-demo", [], PrepareRecipe)
    assert all(source.path.is_relative_to(tmp_path / "assets") for source in recipe.sources.values())
    assert recipe.tokenizer.startswith(str(tmp_path))
