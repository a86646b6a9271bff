"""Through the real command line: what docs/finetuning.md shows works, and every mistake is one line and exit code 2."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainingArguments

from sparse_pretrain import cli
from sparse_pretrain.finetune.mask_lock import nonzero_outside
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.finetune.models import write_sentences

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, flags=re.DOTALL)


@pytest.fixture
def workplace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with `inputs/` in it."""
    (tmp_path / "inputs").symlink_to(folder)
    write_sentences(tmp_path / "all.csv", 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["sparse-pretrain", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_the_task_of_the_guide_is_short_and_runs(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = blocks("yaml")
    assert len(text.splitlines()) <= 20
    values = yaml.safe_load(text)
    values["model"] = "inputs/sparse"
    values["task"] |= {"train": "all.csv", "text": "text", "label": "label"}
    values["training"] |= {"epochs": 1, "max_length": 32}
    (workplace / "my-task.yaml").write_text(yaml.safe_dump(values))
    assert run(monkeypatch, "finetune", "my-task.yaml", "--json") == 0
    single = json.loads(capsys.readouterr().out)
    assert (single["nonzero_outside_masks"], single["metric"]) == (0, "accuracy")
    more = (
        "output=runs/sweep",
        "seeds=[1,2]",
        "--sweep",
        "sweep.learning_rate=[1e-4]",
        "sweep.epochs=[1]",
        "--json",
    )
    assert run(monkeypatch, "finetune", "my-task.yaml", *more) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert point["seeds"] == [1, 2]
    assert run(monkeypatch, "evaluate", "runs/sweep/learning-rate-0.0001_epochs-1/seed-1") == 0


def test_the_code_of_the_guide_keeps_zeros(folder: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    in_trainer, in_loop = blocks("python")
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=1e-2, save_strategy="no", report_to="none", use_cpu=True
    )
    examples = [{"input_ids": [2, 5 + number, 3], "labels": number % 2} for number in range(8)]
    batch = {"input_ids": torch.tensor([[2, 7, 3], [2, 9, 3]]), "labels": torch.tensor([0, 1])}
    for code in (in_trainer, in_loop):
        model = AutoModelForSequenceClassification.from_pretrained(folder / "sparse", num_labels=2)
        names: dict[str, Any] = {
            "Trainer": quiet_trainer,
            "model": model,
            "source": str(folder / "sparse"),
            "arguments": arguments,
            "examples": examples,
            "accelerator": Accelerator(cpu=True),
            "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
            "batches": [batch] * 3,
        }
        before = model.classifier.weight.detach().clone()
        exec(f"{blocks('python')[0].splitlines()[0]}\n{code}", names)
        assert not model.classifier.weight.equal(before)
        masks = MaskSet.load(folder / "sparse" / MASK_FILE)
        assert sum(nonzero_outside(model, masks).values()) == 0


def quiet_trainer(**settings: Any) -> Trainer:
    trainer = Trainer(**settings)
    trainer.remove_callback(PrinterCallback)
    return trainer


TASK = {
    "output": "run",
    "model": "inputs/sparse",
    "task": {"kind": "classification", "train": "all.csv", "text": "text", "label": "label"},
    "training": {"epochs": 1, "max_length": 32},
}
MISTAKES: dict[str, tuple[list[str], str]] = {
    "label column missing": (
        ["task.label=lable"],
        "task.label = 'lable': no such column; did you mean 'label'?",
    ),
    "unseen label": (
        ["task.validation=unseen.csv"],
        "'ugly' in the validation data is not among the classes",
    ),
    "empty split": (["task.validation=empty.csv"], "empty.csv: no rows"),
    "blank text": (["task.validation=blank.csv"], "column 'text': every text is empty"),
    "longer than the positions": (
        ["training.max_length=65"],
        "training.max_length = 65: inputs/sparse has 64 pos",
    ),
    "another tokenizer": (["model=other"], "vocabulary mismatch: the tokenizer has 75 tokens"),
    "dense where sparse is required": (
        ["model=inputs/dense", "masks=require"],
        "inputs/dense: dense (no mask file",
    ),
    "teacher without a dense model": (["distillation.teacher=auto"], "teacher: auto needs dense"),
    "teacher without a head": (["distillation.teacher=inputs/dense"], "inputs/dense"),
    "an unknown kind": (["task.kind=tagging"], "task.kind = 'tagging': should be 'classification'"),
    "headline of another kind": (["task.metric=exact_match"], "does not fit classification"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    case: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides, message = MISTAKES[case]
    (workplace / "task.yaml").write_text(yaml.safe_dump(TASK))
    (workplace / "unseen.csv").write_text("text,label,source\nba,ugly,a\n")
    (workplace / "empty.csv").write_text("text,label,source\n")
    (workplace / "blank.csv").write_text("text,label,source\n ,good,a\n,bad,a\n")
    if case == "another tokenizer":
        (workplace / "other").mkdir()
        for path in (workplace / "inputs" / "sparse").iterdir():
            (workplace / "other" / path.name).write_bytes(path.read_bytes())
        tokenizer = json.loads((workplace / "other" / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"] |= {f"extra{number}": 65 + number for number in range(10)}
        (workplace / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert run(monkeypatch, "finetune", "task.yaml", *overrides) == 2
    printed = capfd.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert message in printed.err
    assert not (workplace / "run").exists()
