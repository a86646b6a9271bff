"""How a run ends: with which code, and what is left."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sparse_pretrain.errors import UserError
from tests.tiny import tiny_prepared, tiny_recipe


def test_pictures_that_fail_do_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_pretrain.training.run import draw

    def fails(_: Path) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("sparse_pretrain.telemetry.plots.plot_run", fails)
    out = io.StringIO()
    draw(tmp_path, Console(file=out, markup=False))
    assert out.getvalue() == f"{tmp_path / 'plots'}: not drawn (RuntimeError: no fonts)\n"


def test_only_mistakes_from_before_the_first_step_take_the_log_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """What is raised inside the loop, even as a mistake, ends with 1 and leaves the log."""
    from sparse_pretrain.training import run

    recipe = tiny_recipe(tiny_prepared(tmp_path / "data"), tmp_path / "run")

    def fails(*_: Any) -> int:
        raise UserError("in the middle")

    kept = os.dup(1), os.dup(2)
    try:
        for where, code in (("_prepare", 2), ("_run", 1)):
            with monkeypatch.context() as patch:
                patch.setattr(run, "join_world", lambda: None)
                patch.setattr(run, "_prepare", lambda *_: (SimpleNamespace(), None))
                patch.setattr(run, where, fails)
                assert run.train(recipe) == code
            assert (tmp_path / "run" / "logs" / "rank-0.log").exists() == (code == 1)
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
