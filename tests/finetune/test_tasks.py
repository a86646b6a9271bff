"""Labelled data: the same from every kind of file, split for ever the same, and every mistake one line."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.recipe import TaskSection
from sparse_pretrain.finetune.tasks import load_task

ROWS = [
    (f'he said "{word}", twice', ("no", "yes")[number % 2], number % 3)
    for number, word in enumerate("abcdefghijkl")
]


def write(path: Path, rows: list[tuple[Any, ...]] = ROWS) -> Path:
    """Write rows of (text, label, group) in the format of the ending."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label, "group": group}) for text, label, group in rows]
    elif path.suffix == ".parquet":
        columns = dict(zip(("text", "label", "group"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), path)
        return path
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(("text", "label", "group"))]
        for text, label, group in rows:
            quoted = '"' + text.replace('"', '""') + '"'
            lines.append(mark.join((quoted, str(label), str(group))))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def task(path: Path, **changes: Any) -> TaskSection:
    values = {
        "kind": "classification",
        "train": str(path),
        "text": "text",
        "label": "label",
        "validation_size": 3,
    }
    return TaskSection.model_validate(values | changes)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_data(ending: str, tmp_path: Path) -> None:
    data = load_task(task(write(tmp_path / f"data{ending}"), where={"group": 1}, validation_size=1))
    assert data.labels == ("no", "yes")
    rows = [*data.splits["train"], *data.splits["validation"]]
    expected = [(text, int(label == "yes")) for text, label, group in ROWS if group == 1]
    assert sorted((row["text"], row["label"]) for row in rows) == sorted(expected)


def test_a_file_without_header_with_plain_quotation_marks_and_ragged_ends(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('x\t4.5\t"open quote\tb c\n\ny\t0\td\te "f"\textra\tfields\n', encoding="utf-8")
    section = task(
        path,
        kind="regression",
        delimiter="\t",
        quoted=False,
        columns=["id", "score", "one", "two"],
        text="one",
        text_pair="two",
        label="score",
        label_scale=5,
        validation=str(path),
    )
    data = load_task(section)
    assert data.labels == ()
    assert data.splits["train"].to_dict() == {
        "text": ['"open quote', "d"],
        "text_pair": ["b c", 'e "f"'],
        "label": [0.9, 0.0],
    }


def test_the_held_out_part_is_fixed_disjoint_and_independent_of_limits(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv")
    whole = load_task(task(path)).splits
    train, held = set(whole["train"]["text"]), set(whole["validation"]["text"])
    assert (len(train), len(held), len(train & held)) == (9, 3, 0)
    small = load_task(task(path, limit_train=4)).splits
    smaller = load_task(task(path, limit_train=2)).splits
    assert small["validation"]["text"] == whole["validation"]["text"]
    assert set(smaller["train"]["text"]) < set(small["train"]["text"]) < train
    assert load_task(task(path, split_seed=1)).splits["validation"]["text"] != whole["validation"]["text"]


def test_number_labels_sort_as_numbers_and_given_labels_fix_the_order(tmp_path: Path) -> None:
    rows = [(f"text {number}", label, 0) for number, label in enumerate([10, 9, 2] * 10)]
    path = write(tmp_path / "data.csv", rows)
    assert load_task(task(path)).labels == ("2", "9", "10")
    assert load_task(task(path, labels=[9, 10, 2])).labels == ("9", "10", "2")


def test_fingerprint_follows_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv")
    first = load_task(task(path)).fingerprint()
    assert first == load_task(task(path)).fingerprint()
    write(path, [("changed", *ROWS[0][1:]), *ROWS[1:]])
    assert first != load_task(task(path)).fingerprint()


def test_a_datasets_name_with_class_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    section = task(
        tmp_path, dataset=str(tmp_path / "set"), train="train", validation="validation", text="sentence"
    )
    data = load_task(section)
    assert data.labels == ("neg", "pos")
    assert data.splits["validation"]["label"] == [1, 0]
    with pytest.raises(UserError, match=r"dataset .*set \[nothing\]: cannot be loaded"):
        load_task(section.model_copy(update={"train": "nothing"}))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing file": ({"train": "nowhere.csv"}, "nowhere.csv: no such file"),
    "unknown ending": ({"train": "{folder}/data.xls"}, "unknown kind of file"),
    "missing column": (
        {"label": "lable"},
        r"task.label = 'lable': no such column; did you mean 'label'\? it has: text, label",
    ),
    "missing filter column": ({"where": {"grp": "1"}}, "task.where.grp = 'grp': no such column"),
    "filter keeps nothing": ({"where": {"group": "7"}}, "no rows with group = 7"),
    "empty file": ({"validation": "{folder}/empty.csv"}, "empty.csv: no rows"),
    "unseen label": (
        {"validation": "{folder}/unseen.csv"},
        "'maybe' in the validation data is not among the classes: no, yes",
    ),
    "blank texts": ({"train": "{folder}/blank.csv"}, "every text is empty"),
    "one class": ({"where": {"label": "yes"}}, "only .'yes'. occurs"),
    "no numbers": ({"kind": "regression"}, "'no' is no number"),
    "nan": ({"kind": "regression", "train": "{folder}/nan.csv"}, "'nan' is no number"),
    "scores as classes": ({"train": "{folder}/scores.csv"}, "set task.kind = regression"),
    "all held out": ({"validation_size": 12}, "leaves none of 12 rows for training"),
    "short row": ({"train": "{folder}/short.csv"}, "short.csv: line 3: 1 fields, the columns need 2"),
    "broken json": ({"train": "{folder}/broken.jsonl"}, "broken.jsonl: line 2: not JSON"),
    "broken parquet": ({"train": "{folder}/broken.parquet"}, "broken Parquet file"),
    "not utf-8": ({"train": "{folder}/latin.csv"}, "not UTF-8"),
    "number as text": ({"train": "{folder}/number.jsonl"}, "3 is no text"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_is_one_line_that_names_it(case: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv")
    write(tmp_path / "unseen.csv", [("a", "maybe", 0)])
    write(tmp_path / "blank.csv", [(" ", label, group) for _, label, group in ROWS])
    write(tmp_path / "nan.csv", [("a", 1, 0), ("b", "nan", 0)] * 4)
    write(tmp_path / "scores.csv", [(f"t {number}", number / 7, 0) for number in range(30)])
    (tmp_path / "empty.csv").write_text("text,label,group\n")
    (tmp_path / "data.xls").write_text("")
    (tmp_path / "short.csv").write_text("text,label\na,yes\nb\n")
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": \n')
    (tmp_path / "number.jsonl").write_text('{"text": 3, "label": "x"}\n{"text": "a", "label": "y"}\n' * 4)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,yes\n".encode("latin-1"))
    changes, message = BAD[case]
    filled = {
        key: value.format(folder=tmp_path) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UserError, match=message) as caught:
        load_task(task(path, **filled))
    assert "\n" not in str(caught.value)
