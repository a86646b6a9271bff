"""A user's mistakes in distillation and `teacher-logits`: one line each."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sparse_pretrain import cli
from sparse_pretrain.config.distillation import DistillationSection
from tests.tiny import tiny_tokenizer
from tests.training.stored_logits import stored_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a teacher, and its logits in shards of one step."""
    return stored_folder(tmp_path_factory.mktemp("stored"))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "key", ["mlm_weight", "kd_weight", "logits_weight", "temperature", "temperature_end"]
)
def test_weights_and_temperatures_are_finite(key: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        DistillationSection.model_validate({"teacher": "a", key: value})


def test_the_home_folder_may_be_abbreviated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    section = DistillationSection.model_validate({"teacher": "a", "precomputed": "~/logits"})
    assert section.precomputed == Path("/home/me/logits")


Mistake = Callable[..., str]


@pytest.fixture
def mistake(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Mistake:
    """Run the command line in an empty folder; return the one line it printed."""
    (tmp_path / "inputs").symlink_to(folder)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sparse-pretrain", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output, errors = capfd.readouterr()
        printed = (output + errors).strip().splitlines()
        assert ended.value.code == 2, printed
        assert len(printed) == 1, printed
        assert not (tmp_path / "run").exists()
        return printed[0]

    return run


def command(name: str, *overrides: str) -> list[str]:
    out = ["out"] if name == "teacher-logits" else []
    tiny = ["output=run", "data.path=inputs/data", "distillation.teacher=inputs/teacher", "steps=10"]
    return [name, "train-tiny", *out, *tiny, *overrides]


MISTAKES: list[tuple[str, list[str], str]] = [
    ("teacher-logits", ["distillation=null"], "distillation: this recipe has no teacher"),
    ("teacher-logits", ["distillation.temperature_end=1"], "remove temperature_end"),
    ("teacher-logits", ["distillation.hidden.weight=1"], "remove hidden"),
    ("teacher-logits", ["--top-k", "66"], "--top-k = 66: the teacher's vocabulary has 65 tokens"),
    ("train", ["distillation.precomputed=nowhere"], "nowhere: no teacher-logits.json"),
    (
        "train",
        ["distillation.precomputed=inputs/logits"],
        "distillation.precomputed = 'inputs/logits': made with",
    ),
    ("train", ["distillation.hidden.weight=0"], "distillation.hidden.weight = 0: should be greater than 0"),
    (
        "train",
        ["distillation.hidden.layer=0"],
        "distillation.hidden.layer: unknown key; did you mean 'layers'?",
    ),
    ("train", ["distillation.hidden.layers={9: 1}"], "distillation.hidden.layers: 9: 1: there is no student"),
    ("train", ["distillation.teacher=3"], "distillation.teacher = 3: give a Hugging Face name or folder"),
    (
        "train",
        ["distillation.attention.weight=1", "model.attention=sdpa"],
        "model.attention = sdpa returns no attention maps",
    ),
]


@pytest.mark.parametrize(("name", "overrides", "said"), MISTAKES)
def test_a_mistake_is_one_line(mistake: Mistake, name: str, overrides: list[str], said: str) -> None:
    assert said in mistake(*command(name, *overrides))


def test_a_teacher_with_another_tokenizer(mistake: Mistake, folder: Path, tmp_path: Path) -> None:
    """The same size is not the same vocabulary."""
    shutil.copytree(folder / "teacher", tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    path = tmp_path / "other" / "tokenizer.json"
    path.write_text(
        path.read_text().replace('"be":', '"ba":#').replace('"ba":', '"be":', 1).replace('"ba":#', '"ba":')
    )
    said = mistake(*command("train", "distillation.teacher=other"))
    assert (
        "distillation.teacher = 'other': its tokenizer is not the data's: token 5 is 'be' there, 'ba'" in said
    )


def test_a_folder_that_holds_something_else(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "out: not empty, and holds no stored logits" in mistake(*command("teacher-logits"))
