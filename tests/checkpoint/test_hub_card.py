"""The model card that a push sends, and what it says of the machine that trained the model: nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.checkpoint.card import hub_datasets, is_hub_name, model_card, without_paths
from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.checkpoint.upload import card_content, split_card
from sparse_pretrain.errors import UserError
from tests.finetune.models import tiny_contents

QUIET = Console(quiet=True)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    return release(tiny_contents(tmp_path / "model"), tmp_path / "release", QUIET)


def test_the_card_that_somebody_wrote_stays(released: Path) -> None:
    facts = json.loads((released / "sparsity.json").read_text())
    report = {"masks": "file"}
    own = (released / "README.md").read_text(encoding="utf-8")
    (released / "README.md").write_text(own + "\nTrained with love.\n", encoding="utf-8")
    assert card_content(released, report, None, "me/x", None) == own + "\nTrained with love.\n"
    changed = card_content(released, report, None, "me/x", "mit")
    assert changed.endswith("\nTrained with love.\n")
    assert split_card(changed)[0]["license"] == "mit"
    assert split_card(changed)[0]["tags"] == split_card(own)[0]["tags"]
    (released / "README.md").write_text("My model.\n", encoding="utf-8")
    header, body = split_card(card_content(released, report, None, "me/x", None))
    assert header["license"] == "unknown"
    assert body.strip() == "My model."
    (released / "README.md").write_text("---\na: [\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        card_content(released, report, None, "me/x", None)
    (released / "README.md").write_text(own, encoding="utf-8")
    assert card_content(released, report, None, "me/x", None) == model_card(facts, "me/x")


def test_a_released_folder_tells_nothing_of_the_machine_that_made_it(tmp_path: Path) -> None:
    contents = tiny_contents(tmp_path / "model")
    recipe = {"data": {"path": "/home/me/data"}, "model": {"source": "/home/me/bert"}, "output": "~/runs"}
    out = release(replace(contents, recipe=contents.recipe | recipe), tmp_path / "out", QUIET)
    for name in ("README.md", "sparsity.json"):
        assert "home" not in (out / name).read_text(encoding="utf-8")
    assert "base_model" not in split_card((out / "README.md").read_text(encoding="utf-8"))[0]
    assert without_paths({"a": ["/x", {"b": "y/z"}], "c": 1}) == {
        "a": ["a local folder", {"b": "y/z"}],
        "c": 1,
    }
    assert not is_hub_name(str(tmp_path))


def test_data_sets_are_named_as_the_hub_names_them() -> None:
    names = ["wikimedia/wikipedia/20231101.en/train", "imdb/train", "/data/own/train", "imdb/test", "./x/y"]
    assert hub_datasets(names) == ["wikimedia/wikipedia", "imdb"]
