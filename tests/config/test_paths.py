"""A leading ~ in a recipe's paths."""

from pathlib import Path

import pytest

from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.errors import UserError


@pytest.mark.parametrize("key", ["output", "data.path", "checkpoint.local", "model.source"])
def test_a_leading_tilde_is_the_home_folder(
    key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe("bert-base-85", [f"{key}=~/x"], TrainRecipe)
    value: object = recipe
    for part in key.split("."):
        value = getattr(value, part)
    assert str(value) == str(tmp_path / "x")
    with pytest.raises(
        UserError, match=rf"{key} = .*~nobody-here/x.*: ~ names a home folder, and there is none"
    ):
        load_recipe("bert-base-85", [f"{key}=~nobody-here/x"], TrainRecipe)
