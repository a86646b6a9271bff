"""The `teacher-logits` command: what it writes, how it continues, and what is said of logits that do not fit."""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain import cli
from sparse_pretrain.config.distillation import DistillationSection
from sparse_pretrain.config.model import DataSection
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.distillation.stored_logits import (
    MANIFEST_FILE,
    StoredLogits,
    StoredLogitsError,
    bytes_per_position,
    shard_path,
)
from sparse_pretrain.distillation.top_logits import top_logits
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.pretraining import PretrainingModel, arguments
from sparse_pretrain.training import teacher_logits
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.stored_teacher import check_stored_logits, check_stored_samples
from sparse_pretrain.training.teacher_inputs import source_identity
from sparse_pretrain.training.teacher_logits import write_teacher_logits
from tests.tiny import VOCABULARY, tiny_prepared, tiny_recipe, tiny_tokenizer

STEPS = 3
TOP_K = 9
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a teacher, and its logits in shards of one step."""
    folder = tmp_path_factory.mktemp("stored")
    tiny_prepared(folder / "data")
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "bert",
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_logits, "SHARD_BYTES", 1)
        write_teacher_logits(recipe_of(folder), folder / "logits", TOP_K, QUIET)
    return folder


def recipe_of(folder: Path, distillation: dict[str, Any] | None = None, **changes: Any) -> TrainRecipe:
    section = {"teacher": str(folder / "teacher"), "temperature": 3.0, **(distillation or {})}
    return tiny_recipe(folder / "data", folder / "run", distillation=section, **{"steps": STEPS, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_pictures_that_fail_do_not_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_pretrain.training.run import draw

    def fails(_: Path) -> None:
        raise RuntimeError("no\nfonts")

    monkeypatch.setattr("sparse_pretrain.telemetry.plots.plot_run", fails)
    out = io.StringIO()
    draw(tmp_path, Console(file=out, markup=False))
    assert out.getvalue() == f"{tmp_path / 'plots'}: not drawn (RuntimeError: no fonts)\n"


def test_any_slice_of_the_stream_reads_the_teachers_own_top_logits(folder: Path) -> None:
    """Three ranks with micro-batches of their own read what one process wrote."""
    recipe = recipe_of(folder, batch={"global_size": 6, "micro_size": 1})
    inputs = open_inputs(recipe)
    model = PretrainingModel(AutoModelForMaskedLM.from_pretrained(folder / "teacher").eval())
    stored = StoredLogits(folder / "logits", torch.device("cpu"))
    for rank in range(3):
        loader = TrainingLoader(
            inputs.train, Slice(6, 1, rank, 3), recipe.masking, inputs.table, recipe.seed, True
        )
        for batch in loader.batches_at(12):
            found = stored(batch)
            with torch.no_grad():
                expected = top_logits(model(*arguments(batch)).tokens, TOP_K, 3.0)
            assert (found.ids[:, 0] == expected.ids[:, 0]).all()
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(found.log_rest, expected.log_rest, rtol=0, atol=1e-5)


def test_what_a_shard_holds_and_costs(folder: Path) -> None:
    shard = load_file(folder / "logits" / "logits-00000.safetensors")
    positions = int(shard["offsets"][-1])
    assert {name: (column.dtype.name, column.shape) for name, column in shard.items()} == {
        "offsets": ("int64", (9,)),
        "rows": ("uint64", (8,)),
        "ids": ("uint16", (positions, TOP_K)),
        "logits": ("float16", (positions, TOP_K)),
        "log_rest": ("float32", (positions,)),
    }
    assert (shard["logits"][:, 0] == 0).all()
    assert (np.diff(shard["logits"], axis=1) <= 0).all()
    assert bytes_per_position(64, 30_522) == 260
    assert bytes_per_position(64, 250_002) == 388


def test_a_killed_command_goes_on_with_the_next_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped inside the second shard: the first stays untouched, the end is the same byte for byte."""
    monkeypatch.setattr(teacher_logits, "SHARD_BYTES", 1)
    written: list[str] = []
    original = teacher_logits.write_shard

    def dies(path: Path, *rest: Any) -> None:
        if path.name == "logits-00001.safetensors":
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        original(path, *rest)

    out = tmp_path / "logits"
    monkeypatch.setattr(teacher_logits, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    with pytest.raises(
        UserError, match="2 of 3 shards are missing; finish them: sparse-pretrain teacher-logits"
    ):
        check(folder, {"precomputed": str(out)})

    def counts(path: Path, *rest: Any) -> None:
        written.append(path.name)
        original(path, *rest)

    monkeypatch.setattr(teacher_logits, "write_shard", counts)
    facts = write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    assert written == ["logits-00001.safetensors", "logits-00002.safetensors"]
    assert contents(out) == contents(folder / "logits")
    assert facts["bytes"] == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
    assert len(written) == 2


def test_processes_share_the_shards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under torchrun: two processes, each its own shards, the same files as one process writes."""
    monkeypatch.setattr(teacher_logits, "SHARD_BYTES", 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    out = tmp_path / "logits"
    for rank, expected in ((0, 2), (1, 3)):
        monkeypatch.setenv("RANK", str(rank))
        write_teacher_logits(recipe_of(folder), out, TOP_K, QUIET)
        assert len(list(out.glob("*.safetensors"))) == expected
    assert contents(out) == contents(folder / "logits")


def check(folder: Path, distillation: dict[str, Any], **changes: Any) -> None:
    recipe = recipe_of(folder, {"precomputed": str(folder / "logits"), **distillation}, **changes)
    check_stored_logits(recipe, open_inputs(recipe_of(folder)).train.manifest.fingerprint, len(VOCABULARY))


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


def broken_copy(folder: Path, out: Path, number: int = 0) -> Path:
    shutil.copytree(folder / "logits", out)
    broken = shard_path(out, number)
    broken.write_bytes(broken.read_bytes()[:-1])
    return out


def test_a_shard_that_breaks_during_a_run_is_a_failure_and_no_mistake(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder)
    inputs = open_inputs(recipe)
    loader = TrainingLoader(inputs.train, Slice(8, 8, 0, 1), recipe.masking, inputs.table, recipe.seed, True)
    with pytest.raises(StoredLogitsError, match="broken shard of logits"):
        StoredLogits(broken_copy(folder, tmp_path / "logits"), torch.device("cpu"))(loader.batches_at(0)[0])
    assert not issubclass(StoredLogitsError, UserError)


def test_broken_shards_that_the_run_needs_are_found_before_it_starts(folder: Path, tmp_path: Path) -> None:
    """Shards of one step: a run of two steps does not need the third."""
    out = broken_copy(folder, tmp_path / "logits", number=2)
    check(folder, {"precomputed": str(out)}, steps=2)
    with pytest.raises(UserError, match=r"logits-00002\.safetensors is broken \(.*; delete it"):
        check(folder, {"precomputed": str(out)})


def altered(folder: Path, out: Path, **columns: np.ndarray) -> Path:
    """Copy the logits with other columns in the first shard, in a file that is whole."""
    shutil.copytree(folder / "logits", out)
    save_file(load_file(shard_path(out, 0)) | columns, shard_path(out, 0))
    return out


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


def test_only_mistakes_from_before_the_first_step_take_the_log_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """What is raised inside the loop, even as a mistake, ends with 1 and leaves the log."""
    from sparse_pretrain.training import run

    recipe = tiny_recipe(folder / "data", tmp_path / "run")

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


def test_a_folder_that_was_begun_in_another_precision(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "logits", tmp_path / "logits")
    with pytest.raises(UserError, match="was begun with precision = fp32, now it is bf16"):
        write_teacher_logits(recipe_of(folder, precision="bf16"), tmp_path / "logits", TOP_K, QUIET)


def test_a_sample_of_other_tokens_is_a_failure(folder: Path, tmp_path: Path) -> None:
    """Masking that changed between two versions leaves the manifest as it was."""
    rows = load_file(shard_path(folder / "logits", 0))["rows"]
    rows[3] += 1
    stored = StoredLogits(altered(folder, tmp_path / "logits", rows=rows), torch.device("cpu"))
    recipe = recipe_of(folder)
    inputs = open_inputs(recipe)
    loader = TrainingLoader(inputs.train, Slice(8, 1, 0, 1), recipe.masking, inputs.table, recipe.seed, True)
    batches = loader.batches_at(0)
    for batch in batches[:3]:
        stored(batch)
    with pytest.raises(StoredLogitsError, match="sample 3 of the stream was made from other tokens"):
        stored(batches[3])


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


def test_a_folder_that_was_begun_for_another_run(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "logits", tmp_path / "logits")
    with pytest.raises(UserError, match="was begun with top_k = 9, now it is 8; give another folder"):
        write_teacher_logits(recipe_of(folder), tmp_path / "logits", 8, QUIET)


def test_a_full_disk_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match=r"needs about .* kB, 5 B are free"):
        write_teacher_logits(recipe_of(folder), tmp_path / "logits", TOP_K, QUIET)
    assert not (tmp_path / "logits").exists()


def test_ids_wait_for_their_shard_in_the_type_of_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = set()
    original = teacher_logits.write_shard

    def looks(path: Path, counts: Any, hashes: Any, parts: Any, manifest: Any) -> None:
        kinds.update(part.ids.dtype for part in parts)
        original(path, counts, hashes, parts, manifest)

    monkeypatch.setattr(teacher_logits, "write_shard", looks)
    write_teacher_logits(recipe_of(folder), tmp_path / "logits", TOP_K, QUIET)
    assert kinds == {torch.uint16}


@pytest.mark.parametrize("rank", [0, 1])
def test_the_command_says_once_what_it_costs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, rank: int
) -> None:
    if rank:
        for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "sparse-pretrain",
            *("teacher-logits", "train-tiny", str(tmp_path / "out"), "output=run", "--json", "--top-k", "4"),
            *(f"data.path={folder / 'data'}", f"distillation.teacher={folder / 'teacher'}", "steps=10"),
        ],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    output, errors = capfd.readouterr()
    if rank:
        assert output == ""
        return
    facts = json.loads(output)
    assert facts["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert "10 steps, about" in errors
    assert "on disk (1 shards, 0 already there)" in errors
