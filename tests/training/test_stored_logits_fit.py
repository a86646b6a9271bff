"""Whether stored logits fit a run: its stream, its teacher, the steps that it needs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_pretrain.config.model import DataSection
from sparse_pretrain.distillation.stored_logits import MANIFEST_FILE
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.stored_teacher import check_stored_samples
from sparse_pretrain.training.teacher_inputs import source_identity
from tests.tiny import tiny_prepared
from tests.training.stored_logits import TOP_K, altered, broken_copy, check, recipe_of, stored_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a teacher, and its logits in shards of one step."""
    return stored_folder(tmp_path_factory.mktemp("stored"))


def test_logits_that_cover_more_than_the_run_fit_whatever_the_batch(folder: Path) -> None:
    check(folder, {})
    check(folder, {}, steps=2)
    check(folder, {}, steps=1, batch={"global_size": 24, "micro_size": 2})


MISMATCHES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"seed": 43}, "made with seed = 42, this recipe has 43"),
    ({}, {"masking": {"probability": 0.2}}, "made with masking = "),
    ({}, {"steps": 4}, "covers 24 samples, steps x batch.global_size = 32"),
    ({"temperature": 2.0}, {}, "made with distillation.temperature = 3.0, this recipe has 2.0"),
    ({"positions": "masked"}, {}, "made with distillation.positions = all, this recipe has masked"),
    ({"teacher": "another/model"}, {}, "this recipe has another/model"),
]


@pytest.mark.parametrize(("distillation", "changes", "said"), MISMATCHES)
def test_logits_of_another_stream_or_teacher(
    folder: Path, distillation: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        check(folder, distillation, **changes)
    assert said in str(error.value)
    assert str(error.value).startswith("distillation.precomputed = ")
    assert "\n" not in str(error.value)


def test_other_data(folder: Path, tmp_path: Path) -> None:
    stored = recipe_of(folder, {"precomputed": str(folder / "logits")})
    other = stored.model_copy(update={"data": DataSection(path=tiny_prepared(tmp_path, seed=1))})
    with pytest.raises(UserError, match=r"made with data\.path's fingerprint = "):
        open_inputs(other)


def test_a_teacher_that_is_known_by_name_only(folder: Path, tmp_path: Path) -> None:
    """Training needs no weights of the teacher; weights that are there must be the ones."""
    shutil.copytree(folder / "logits", tmp_path / "logits")
    path = tmp_path / "logits" / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "teacher": "some/teacher"}))
    check(folder, {"precomputed": str(tmp_path / "logits"), "teacher": "some/teacher"})
    check(folder, {"precomputed": str(tmp_path / "logits")})


def test_broken_shards_that_the_run_needs_are_found_before_it_starts(folder: Path, tmp_path: Path) -> None:
    """Shards of one step: a run of two steps does not need the third."""
    out = broken_copy(folder, tmp_path / "logits", number=2)
    check(folder, {"precomputed": str(out)}, steps=2)
    with pytest.raises(UserError, match=r"logits-00002\.safetensors is broken \(.*; delete it"):
        check(folder, {"precomputed": str(out)})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"offsets": np.array([0, 5], dtype=np.int64)}, "its offsets are not those of 8 samples"),
        ({"logits": np.zeros((3, TOP_K), dtype=np.float16)}, "logits is "),
        ({"ids": np.zeros((3, TOP_K), dtype=np.int32)}, "ids is "),
    ],
)
def test_a_whole_shard_of_something_else(
    folder: Path, tmp_path: Path, columns: dict[str, np.ndarray], said: str
) -> None:
    out = altered(folder, tmp_path / "logits", **columns)
    with pytest.raises(UserError, match=said):
        check(folder, {"precomputed": str(out)})


def test_a_run_that_continues_needs_what_lies_ahead_of_it(folder: Path, tmp_path: Path) -> None:
    """24 samples are stored: after one step of 8 two more fit, or one of 16; the shards behind may be broken."""
    recipe = recipe_of(folder, {"precomputed": str(broken_copy(folder, tmp_path / "logits"))})
    check_stored_samples(recipe, 1, 8)
    check_stored_samples(recipe, 3, 24)
    larger = recipe_of(
        folder, {"precomputed": str(folder / "logits")}, batch={"global_size": 16, "micro_size": 2}
    )
    check_stored_samples(larger, 2, 8)
    with pytest.raises(UserError, match="covers 24 samples"):
        check_stored_samples(larger, 1, 8)


@pytest.mark.parametrize(
    "names", [("model.safetensors",), ("model-00001-of-00002.safetensors",), ("pytorch_model.bin",)]
)
def test_a_local_teacher_is_known_by_all_its_weights_and_its_architecture(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in ("config.json", "model-00002-of-00002.safetensors", *names):
        (tmp_path / name).write_text("one")
    before = source_identity(str(tmp_path))
    for name in ("config.json", *names):
        (tmp_path / name).write_text("another")
        assert source_identity(str(tmp_path)) != before, name
        (tmp_path / name).write_text("one")
    assert source_identity(str(tmp_path)) == before


def test_a_folder_without_weights_is_no_teacher(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"no model\*\.safetensors and no pytorch_model\*\.bin in this folder"
    ):
        source_identity(str(tmp_path))
