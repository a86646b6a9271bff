"""Tags, choices and spans: whole runs of tiny models, encodings by hand, and mistakes in the data."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from rich.console import Console
from transformers import AutoModel, AutoTokenizer

from sparse_pretrain.errors import UserError
from sparse_pretrain.finetune.evaluate import evaluate
from sparse_pretrain.finetune.kinds import kind_of
from sparse_pretrain.finetune.kinds.base import IGNORED
from sparse_pretrain.finetune.recipe import TaskSection
from sparse_pretrain.finetune.task_model import load_tokenizer
from sparse_pretrain.finetune.tasks import load_task
from sparse_pretrain.finetune.train import finetune
from tests.finetune.models import recipe
from tests.finetune.rows import SPAN, TASKS, answered, write_rows
from tests.tiny import WORDS, tiny_tokenizer
from tests.tiny_models import roberta_config, roberta_tokenizer

QUIET = Console(quiet=True)


@pytest.mark.parametrize("name", TASKS)
def test_a_tiny_model_learns_it_with_zeros_locked_and_a_teacher(
    name: str, folder: Path, tmp_path: Path
) -> None:
    make, settings = TASKS[name]
    generator = random.Random(0)
    task = settings | {
        "train": write_rows(tmp_path / "train.jsonl", [make(generator) for _ in range(400)]),
        "validation": write_rows(tmp_path / "validation.jsonl", [make(generator) for _ in range(60)]),
        "labels": [],
    }
    sections = {"distillation": {"teacher": "auto", "dense": str(folder / "dense")}}
    fast = {"learning_rate": 5e-3, "epochs": 4, "max_length": 24}
    result = finetune(recipe(folder, tmp_path / "run", task=task, sections=sections, **fast), QUIET)
    assert result.score > 0.8, result.metrics
    assert (result.masks, result.nonzero_outside_masks) == ("file", 0)
    assert result.examples == {"train": 400, "validation": 60}
    again = evaluate(result.output, precision="fp32")
    assert again["metrics"] == pytest.approx(result.metrics["validation"])
    overrides = ("task.kind=classification", "task.text_pair=null", "task.choices=[]")
    with pytest.raises(UserError, match=f"fine-tuned for {settings['kind']}, the task is a classification"):
        evaluate(result.output, overrides=overrides)


def section(train: str, **changes: Any) -> TaskSection:
    values = SPAN | {"train": train, "validation": train, "span": {"stride": 4}}
    return TaskSection.model_validate(values | changes)


def test_windows_cover_a_long_context_and_know_their_answers(tmp_path: Path) -> None:
    """Every window repeats the question; neighbours share `stride` tokens; offsets give back the context."""
    words = WORDS[:20]
    row = {
        "question": "  fa fe",
        "context": " ".join(words),
        "answers": {"text": [" ".join(words[8:10])], "answer_start": [24]},
    }
    task = section(write_rows(tmp_path / "data.jsonl", [row]))
    tokenizer = tiny_tokenizer()
    examples = load_task(task).splits["train"]
    rows = list(kind_of(task).encode(tokenizer, examples, 15))
    # 15 tokens less [CLS] fa fe [SEP] ... [SEP]: 10 of context, 6 new ones a window.
    spoken = [[tuple(place) for place in row["offsets"] if place] for row in rows]
    assert [len(window) for window in spoken] == [10, 10, 8]
    assert all(one[-4:] == other[:4] for one, other in itertools.pairwise(spoken)), (
        "neighbours share four tokens"
    )
    assert [row["example"] for row in rows] == [0, 0, 0]
    for number, row in enumerate(rows):
        first, last = row["start_positions"], row["end_positions"]
        if number == 2:
            assert (first, last) == (0, 0), "the answer is not in this window: [CLS]"
        else:
            assert [tokenizer.decode(row["input_ids"][place]) for place in (first, last)] == words[8:10]


def test_unicode_counts_in_characters(tmp_path: Path) -> None:
    row = {
        "question": "ba",
        "context": "«Été» 東京 ba be",
        "answers": {"text": ["ba be"], "answer_start": [9]},
    }
    task = section(write_rows(tmp_path / "data.jsonl", [row]))
    (encoded,) = kind_of(task).encode(tiny_tokenizer(), load_task(task).splits["train"], 24)
    first, last = (encoded["offsets"][encoded[name]] for name in ("start_positions", "end_positions"))
    assert row["context"][first[0] : last[1]] == "ba be"


def test_squads_own_file_and_a_datasets_name_give_the_same(tmp_path: Path) -> None:
    rows = [answered(random.Random(seed), 0.5) for seed in range(6)]
    questions = [
        {
            "context": row["context"],
            "qas": [
                {
                    "id": str(number),
                    "question": row["question"],
                    "answers": [
                        {"text": text, "answer_start": start}
                        for text, start in zip(*row["answers"].values(), strict=True)
                    ],
                }
            ],
        }
        for number, row in enumerate(rows)
    ]
    (tmp_path / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": questions}]}))
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    options = {"span": {"no_answer": True}}
    own = load_task(section(str(tmp_path / "squad.json"), **options))
    named = load_task(section("train", dataset=str(tmp_path / "set"), **options))
    plain = load_task(section(write_rows(tmp_path / "data.jsonl", rows), **options))
    assert own.splits["train"].to_dict() == named.splits["train"].to_dict()
    assert own.splits["train"].to_dict() == plain.splits["train"].to_dict()


def test_tags_by_datasets_class_names_and_only_on_first_tokens(tmp_path: Path, folder: Path) -> None:
    features = datasets.Features(
        {
            "words": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    table = datasets.Dataset.from_dict({"words": [["baba", "be"]], "tags": [[1, 0]]}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    task = TaskSection(
        kind="tokens",
        dataset=str(tmp_path / "set"),
        train="train",
        validation="train",
        text="words",
        label="tags",
    )
    data = load_task(task)
    assert data.labels == ("B-X", "O")
    tokenizer = AutoTokenizer.from_pretrained(folder / "dense")
    (row,) = kind_of(task).encode(tokenizer, data.splits["train"], 16)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "ba", "##ba", "be", "[SEP]"]
    assert row["labels"] == [IGNORED, 0, IGNORED, 1, IGNORED]


def test_words_of_robertas_tokenizer_have_a_space_before_them(tmp_path: Path) -> None:
    """As in any text; without, "ba", "be" would be the tokens of "babe". The model's folder keeps the setting."""
    tokenizer = roberta_tokenizer()
    config = roberta_config(tokenizer)
    model = AutoModel.from_config(config)
    for folder in (tmp_path, tmp_path / "model"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    words = [["ba", "be"]]
    for kind, expected in (("tokens", ["Ġba", "Ġbe"]), ("span", ["ba", "be"])):
        loaded = load_tokenizer(tmp_path, config, 24, kind)
        tokens = loaded(words, is_split_into_words=True)["input_ids"][0]
        assert loaded.convert_ids_to_tokens(tokens)[1:-1] == expected
    load_tokenizer(tmp_path, config, 24, "tokens").save_pretrained(tmp_path / "model")
    again = load_tokenizer(tmp_path / "model", config, 24)
    assert again(words, is_split_into_words=True)["input_ids"][0] == tokenizer(" ba be")["input_ids"]


def test_words_that_are_cut_off_count_as_outside(tmp_path: Path) -> None:
    rows = [{"words": WORDS[:10], "tags": ["B-X"] * 5 + ["O"] * 5}]
    task = TaskSection(
        kind="tokens",
        train=write_rows(tmp_path / "a.jsonl", rows),
        validation=write_rows(tmp_path / "b.jsonl", rows),
        text="words",
        label="tags",
    )
    kind, examples = kind_of(task), load_task(task).splits["train"]
    encoded = kind.encode(tiny_tokenizer(), examples, 5)
    always_x = np.tile(np.array([1.0, 0.0], np.float32), (8, 1))
    metrics = kind.score(examples, encoded, [(always_x,)])
    # Three of five words fit between [CLS] and [SEP].
    assert (metrics["precision"], metrics["recall"]) == (1.0, pytest.approx(3 / 5))


GOOD = {"question": "ba", "context": "ba be", "answers": {"text": ["be"], "answer_start": [3]}}
TAGS = {"kind": "tokens", "text": "words", "text_pair": None, "label": "tags"}
CHOICE = {"kind": "choice", "text": "words", "text_pair": None, "choices": ["a", "b"], "label": "tags"}
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no answer": (
        GOOD | {"answers": {"text": [], "answer_start": []}},
        {},
        "row 1: no answer in column 'answers'; set task.span.no_answer=true",
    ),
    "not SQuAD's form": (
        GOOD | {"answers": "be"},
        {},
        r"'be': must be \{text: \[...\], answer_start: \[...\]\}",
    ),
    "outside the context": (
        GOOD | {"answers": {"text": ["be"], "answer_start": [30]}},
        {},
        "'be' at 30: not a place in a context of 5 characters",
    ),
    "bytes instead of characters": (
        GOOD | {"answers": {"text": ["be"], "answer_start": [1]}},
        {},
        "1 of 1 answers do not stand at their answer_start: 'be' is wanted, 'a ' is there",
    ),
    "blank context": (GOOD | {"context": " "}, {}, "column 'context': every text is empty"),
    "words and tags": (
        {"words": ["a", "b", "c"], "tags": ["O", "X"]},
        TAGS,
        "row 1: 3 words in 'words' and 2 tags in 'tags'",
    ),
    "numbers as words": ({"words": [1, 2], "tags": ["O", "X"]}, TAGS, "are no words"),
    "blank words": ({"words": [" ", ""], "tags": ["O", "X"]}, TAGS, "every text is empty"),
    "one tag": ({"words": ["a"], "tags": ["O"]}, TAGS, "only .'O'. occurs; needs two tags"),
    "no such ending": (
        {"words": "x", "a": "y", "b": "z", "tags": 2},
        CHOICE,
        "2 in the train data is not among the classes: 0, 1",
    ),
    "missing ending": ({"words": "x", "a": "y", "tags": 0}, CHOICE, "task.choices = 'b': no such column"),
}


@pytest.mark.parametrize("case", BAD)
def test_every_mistake_in_the_data_is_one_line(case: str, tmp_path: Path) -> None:
    row, changes, message = BAD[case]
    with pytest.raises(UserError, match=message) as caught:
        load_task(section(write_rows(tmp_path / "data.jsonl", [row]), **changes))
    assert "\n" not in str(caught.value)


def test_a_stride_without_room_is_one_line(tmp_path: Path) -> None:
    task = section(write_rows(tmp_path / "data.jsonl", [GOOD]), span={"stride": 12})
    with pytest.raises(
        UserError, match=r"task.span.stride = 12: with training.max_length = 16 .* room for 12 tokens"
    ):
        kind_of(task).encode(tiny_tokenizer(), load_task(task).splits["train"], 16)


def test_files_that_are_not_squads(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    for content, message in (
        ('{"a": 1}', "not SQuAD's form"),
        ('{"a": 1}\n{"a": 2}', "one object a line is .jsonl"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            load_task(section(str(path)))
