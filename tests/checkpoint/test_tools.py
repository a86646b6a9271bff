"""`checkpoint ls|verify|convert|prune` on checkpoints of one real run on two ranks, sound and damaged."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from sparse_pretrain.checkpoint import verify as verify_module
from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.coverage import read_index
from sparse_pretrain.checkpoint.fence import read_owner
from sparse_pretrain.checkpoint.integrity import FileFacts, Manifest, problem_with, read_manifest
from sparse_pretrain.checkpoint.layout import MANIFEST, weight_file
from sparse_pretrain.checkpoint.shards import FragmentReader, Piece, write_rank
from sparse_pretrain.checkpoint.store import read_checkpoint
from sparse_pretrain.checkpoint.verify import verify
from sparse_pretrain.cli import main
from sparse_pretrain.files import read_json, write_json
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.tiny import tiny_prepared

pytestmark = pytest.mark.slow
QUIET = Console(quiet=True)
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
ROOT = Path(__file__).resolve().parents[2]
# Matrices of 8,192 weights: large enough for fragments to be stored without their zeros.
WIDE = ("model.config.intermediate_size=256",)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps on two ranks: step 5 in the ramp, step 10 behind the freeze."""
    folder = tmp_path_factory.mktemp("tools")
    tiny_prepared(folder / "data")
    command = [sys.executable, "-m", "sparse_pretrain", "launch", "local", "train-tiny", "--nproc", "2"]
    done = subprocess.run(
        [*command, "data.path=data", "output=run", "logging.histograms_every=0", *WIDE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run's checkpoints that a test may damage."""
    shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


@pytest.fixture
def newest(run: Path) -> Path:
    return run / "checkpoints" / "step-0000010"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `sparse-pretrain checkpoint …`; return exit code, output, errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sparse-pretrain", "checkpoint", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


# --- damage -------------------------------------------------------------------------------------------


def flip(path: Path, place: int = -20) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def seal(folder: Path, **changes: Any) -> None:
    """Make the manifest agree with the files again: what is then found is not found by checksums."""
    before = read_manifest(folder)
    files = {
        path.relative_to(folder).as_posix(): FileFacts(path.stat().st_size, checksum_file(path))
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    values = {"step": before.step, "run": before.run, "start": before.start, "ranks": before.ranks} | changes
    write_json(folder / MANIFEST, Manifest(files=files, **values).to_json())


def edit_state(folder: Path, **changes: Any) -> None:
    write_json(folder / "state.json", read_json(folder / "state.json") | changes)
    seal(folder)


def edit_shard(
    folder: Path,
    rank: int,
    change: Callable[[list[Piece]], list[Piece]] = lambda pieces: pieces,
    origin: str | None = None,
    shapes: dict[str, list[int]] | None = None,
    extra: bool = True,
) -> None:
    """Write one rank's file anew with other fragments, and seal the checkpoint."""
    path = weight_file(folder, rank)
    index, reader = read_index(path), FragmentReader([path])
    pieces = [
        Piece(kind, name, start, reader.read(kind, name, start, end - start).clone())
        for (kind, name), (start, end) in index.spans.items()
    ]
    kept = {name: tensor.clone() for name, tensor in reader.of_rank(0).items()}
    whole = {name: torch.Size(shape) for name, shape in (index.shapes | (shapes or {})).items()}
    path.unlink()
    write_rank(path, change(pieces), whole, kept if extra else {}, origin or index.origin, without_zeros=True)
    seal(folder)


def holder(folder: Path, kind: str, name: str) -> tuple[int, int, int]:
    """Return rank, first and last element of a fragment that is not empty."""
    for rank in (0, 1):
        start, end = read_index(weight_file(folder, rank)).spans.get((kind, name), (0, 0))
        if start < end:
            return rank, start, end - 1
    raise AssertionError(name)


def set_value(folder: Path, kind: str, name: str, element: int, value: float) -> None:
    """Change one element of a flattened parameter, whichever rank has it."""

    def change(pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if (piece.kind, piece.name) == (kind, name) and 0 <= element - piece.start < len(piece.values):
                piece.values[element - piece.start] = value
        return pieces

    for rank in (0, 1):
        edit_shard(folder, rank, change)


def findings(folder: Path) -> list[tuple[str, str]]:
    report = verify(folder, QUIET)
    assert json.loads(json.dumps(report)) == report
    assert report["ok"] == (not report["findings"])
    return [(finding["check"], finding["problem"]) for finding in report["findings"]]


# --- verify -------------------------------------------------------------------------------------------


def test_sound_checkpoints_pass_in_the_ramp_and_behind_the_freeze(finished: Path, command: Command) -> None:
    code, out, err = command("verify", finished, "--all", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["ok"]
    first, last = answer["checkpoints"]
    assert (first["frozen"], last["frozen"]) == (False, True)
    for report in (first, last):
        assert report["findings"] == []
        assert report["kinds"] == ["exp_avg", "exp_avg_sq", "master"]
        assert (report["parameters"], report["ranks"], report["files"]) == (46, 2, 7)
        assert len(report["layers"]) == 13
    assert last["prunable"]["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_people_get_the_sparsity_of_every_weight_and_one_line_of_verdict(
    finished: Path, command: Command
) -> None:
    code, out, _ = command("verify", finished)
    assert code == 0
    lines = out.splitlines()
    assert re.fullmatch(rf"{re.escape(QUERY)} +32 x 32 +1,024 +819 +79.9805%", lines[1])
    assert lines[-2].startswith("all prunable weights")
    assert "step-0000010: whole: 7 files" in lines[-1]
    assert lines[-1].endswith("all finite; masks frozen, zeros exact")


def test_every_damaged_file_is_named_and_the_exit_code_is_1(newest: Path, command: Command) -> None:
    flip(weight_file(newest, 1))
    (newest / "model" / "tokenizer.json").unlink()
    (newest / "weights" / "notes.txt").write_text("hello")
    code, out, _ = command("verify", newest)
    assert code == 1
    found = [line.partition(": ")[2] for line in out.splitlines() if line.startswith(f"{newest}: ")]
    assert found[:3] == [
        "files: model/tokenizer.json is missing",
        "files: weights/rank-00001.safetensors does not match its checksum",
        "files: weights/notes.txt is not in manifest.json",
    ]
    assert found[3].startswith(f"shards: {newest}/weights/notes.txt: not a shard of a checkpoint")


def test_a_checkpoint_without_its_manifest_is_not_trusted(newest: Path) -> None:
    (newest / MANIFEST).unlink()
    assert findings(newest) == [("files", "no manifest.json: the save was not finished, or the file is lost")]


def test_a_file_cut_short_is_found_by_its_size_and_the_rest_is_still_looked_at(newest: Path) -> None:
    path = weight_file(newest, 0)
    path.write_bytes(path.read_bytes()[:-100])
    (first, second) = findings(newest)
    assert first[0] == "files"
    assert first[1].startswith("weights/rank-00000.safetensors has ")
    assert second[1].endswith("weights and masks were not looked at")


def test_a_lost_a_doubled_and_a_foreign_fragment_are_found_by_element(newest: Path) -> None:
    rank, start, end = holder(newest, "master", QUERY)
    edit_shard(newest, rank, lambda all: [p for p in all if (p.kind, p.name) != ("master", QUERY)])
    assert findings(newest) == [("fragments", f"master/{QUERY}: no rank has elements {start:,} to {end:,}")]

    bias = QUERY.replace("weight", "bias")
    rank, start, end = holder(newest, "exp_avg", bias)
    # The same elements at the other rank, too; then a fragment of a parameter that there is not.
    edit_shard(newest, 1 - rank, lambda all: [*all, Piece("exp_avg", bias, start, torch.zeros(2))])
    edit_shard(newest, 0, lambda all: [*all, Piece("master", "surprise", 0, torch.zeros(2))])
    found = findings(newest)
    assert ("fragments", f"exp_avg/{bias}: two ranks have elements {start:,} to {start + 1:,}") in found
    assert ("fragments", "master/surprise: a fragment of no parameter") in found


def test_moments_are_there_for_all_or_for_none(newest: Path) -> None:
    bias = QUERY.replace("weight", "bias")
    rank, _, _ = holder(newest, "exp_avg_sq", bias)
    edit_shard(newest, rank, lambda all: [p for p in all if (p.kind, p.name) != ("exp_avg_sq", bias)])
    assert findings(newest) == [("moments", f"exp_avg_sq: missing for 1 of 46 parameters: {bias}")]


def test_before_the_first_optimizer_step_there_are_no_moments(newest: Path) -> None:
    edit_state(newest, optimizer_steps=0)
    assert [check for check, _ in findings(newest)] == ["moments", "moments"]
    for rank in (0, 1):
        edit_shard(newest, rank, lambda all: [piece for piece in all if piece.kind == "master"])
    assert findings(newest) == []


def test_a_value_that_is_not_a_number_is_found(newest: Path) -> None:
    mask = MaskSet.load(newest / MASK_FILE)[QUERY].flatten()
    kept = int(mask.nonzero()[3])
    set_value(newest, "master", QUERY, kept, float("nan"))
    assert findings(newest) == [("masters", f"{QUERY}: 1 values are NaN or infinite")]


@pytest.mark.parametrize("kind", ["master", "exp_avg", "exp_avg_sq"])
def test_behind_the_freeze_weights_and_moments_of_what_is_pruned_are_exactly_zero(
    kind: str, newest: Path, run: Path
) -> None:
    mask = MaskSet.load(newest / MASK_FILE)[QUERY].flatten()
    pruned = int((~mask).nonzero()[7])
    set_value(newest, kind, QUERY, pruned, 1e-30)
    assert findings(newest) == [("freeze", f"{kind}/{QUERY}: 1 values outside the frozen mask are not zero")]
    # In the ramp masters are dense: a pruned weight may come back.
    open_masks = run / "checkpoints" / "step-0000005"
    weights = read_checkpoint(open_masks)
    assert weights.masks is not None
    assert bool((weights.weights[QUERY][~weights.masks[QUERY]] != 0).any())
    assert findings(open_masks) == []


def test_masks_that_are_not_the_run_s_or_not_the_model_s_are_found(newest: Path) -> None:
    path = newest / MASK_FILE
    masks = dict(MaskSet.load(path))
    masks[QUERY].view(-1)[0].logical_not_()
    MaskSet(masks).save(path)
    seal(newest)
    digest = ("masks", "masks.safetensors: not the masks of state.json (their digest differs)")
    assert digest in findings(newest)

    ones = torch.ones(3, 3, dtype=torch.bool)
    MaskSet(masks | {QUERY: ones, "surprise": ones}).save(path)
    seal(newest)
    assert findings(newest) == [
        digest,
        ("masks", f"masks.safetensors: {QUERY} is [3, 3] there, the weight is [32, 32]"),
        ("masks", "masks.safetensors: surprise is no parameter of the model"),
    ]

    path.write_bytes(b"\x00" * 100)
    seal(newest)
    ((check, problem),) = findings(newest)
    assert check == "masks"
    assert "broken mask file" in problem

    path.unlink()
    seal(newest)
    assert findings(newest) == [("masks", "masks.safetensors is missing, although the run prunes")]


def test_a_mixture_of_shards_is_found(newest: Path) -> None:
    edit_shard(newest, 1, origin="run x, step 5", shapes={QUERY: [16, 64]}, extra=False)
    found = findings(newest)
    run = read_manifest(newest).run
    shard = "weights/rank-00001.safetensors"
    assert found[:3] == [
        ("shards", f"{shard} belongs to run x, step 5, the checkpoint is run {run}, step 10"),
        ("shards", f"{shard} has another shape of {QUERY} than rank-00000.safetensors"),
        ("shards", f"{shard} has no random-number state (random_cpu)"),
    ]
    assert "cannot be mixed" in found[3][1]


def test_a_lost_shard_and_the_state_of_another_checkpoint_are_found(newest: Path) -> None:
    weight_file(newest, 1).unlink()
    seal(newest)
    edit_state(newest, step=9)
    found = findings(newest)
    assert found[:2] == [
        ("shards", "weights holds 1 shards, 2 ranks wrote the checkpoint"),
        ("shards", "state.json is of another step, run or number of ranks than manifest.json"),
    ]
    assert {check for check, _ in found[2:]} <= {"fragments", "moments"}
    (newest / "state.json").write_text("{}")
    seal(newest)
    ((_, problem),) = findings(newest)
    assert problem.endswith("state.json: has no step: weights and masks were not looked at")


@pytest.mark.parametrize("hidden_size", [16, 33])
def test_a_config_of_another_model_is_found(hidden_size: int, newest: Path) -> None:
    """Also one of which no model can be made: two heads do not share 33."""
    path = newest / "model" / "config.json"
    write_json(path, read_json(path) | {"hidden_size": hidden_size})
    seal(newest)
    ((check, problem),) = findings(newest)
    assert check == "model"
    assert problem.startswith("model/config.json is of another model: ")


def test_the_moments_are_called_as_the_engine_calls_them() -> None:
    from sparse_pretrain.training.engine import MOMENTS

    assert verify_module.MOMENTS == MOMENTS


# --- ls -----------------------------------------------------------------------------------------------


def test_ls_shows_a_line_for_each_checkpoint(finished: Path, command: Command) -> None:
    code, out, err = command("ls", finished)
    assert (code, err) == (0, "")
    first, last = out.splitlines()[1:3]
    whole = r"0\.\d MB +2 +2 +1 +{} +whole \(sizes match\) +mlm_loss \d\.\d+ .*nsp_accuracy \d\.\d+"
    assert re.fullmatch(r"step-0000005 +\d{4}-\d\d-\d\d \d\d:\d\d +" + whole.format(r"77\.04%"), first)
    assert re.fullmatch(r"step-0000010\* +\d{4}-\d\d-\d\d \d\d:\d\d +" + whole.format(r"80\.00%"), last)
    assert command("ls", finished / "checkpoints")[1] == out


def test_ls_tells_what_is_wrong_and_what_saves_have_left(run: Path, command: Command) -> None:
    folder = run / "checkpoints"
    with weight_file(folder / "step-0000010", 0).open("ab") as file:
        file.write(b"more")
    (folder / "step-0000005" / MANIFEST).unlink()
    (folder / "latest").write_text("step-0000099\n")
    for name in (".step-0000007.start-1.partial", ".step-0000003.deleted.partial"):
        (folder / name).mkdir()
        (folder / name / "half").write_bytes(b"x" * 1_000_000)
    (folder / ".step-0000010.replaced").mkdir()
    (folder / ".step-0000020.replaced").mkdir()
    code, out, _ = command("ls", run, "--json")
    assert code == 0
    report = json.loads(out)
    assert [row["problem"] is None for row in report["steps"]] == [False, False]
    assert report["steps"][0]["ranks"] is None
    assert report["steps"][1]["ranks"] == 2
    assert [problem.partition(":")[0] for problem in report["problems"]] == [
        "step-0000005",
        "step-0000010",
        "latest names step-0000099, which is not there",
    ]
    assert {row["name"]: row["state"] for row in report["leftovers"]} == {
        ".step-0000003.deleted.partial": "abandoned",
        ".step-0000007.start-1.partial": "abandoned",
        ".step-0000010.replaced": "replaced",
        ".step-0000020.replaced": "set aside",
    }
    shown = command("ls", run)[1].splitlines()
    assert all(" broken " in line for line in shown[1:3])
    assert ".step-0000007.start-1.partial: 1.0 MB, abandoned" in shown


def test_ls_tells_a_living_save_from_one_on_another_machine(run: Path, command: Command) -> None:
    (run / "checkpoints" / ".step-0000020.start-1.partial").mkdir()
    own(run)
    shown = command("ls", run)[1]
    assert ".step-0000020.start-1.partial: 0.0 MB, being written" in shown
    assert f"process {os.getppid()} on this machine is training in this folder" in shown
    own(run, host="elsewhere")
    assert ".step-0000020.start-1.partial: 0.0 MB, unknown" in command("ls", run)[1]
    # Only the newest start writes.
    own(run, start=2)
    assert ".step-0000020.start-1.partial: 0.0 MB, abandoned" in command("ls", run)[1]


def own(run: Path, **changes: Any) -> None:
    """Let a living process, the one that started these tests, own the run."""
    owner = read_owner(run / "checkpoints")
    assert owner is not None
    parent = psutil.Process(os.getppid())
    values = {"host": platform.node(), "process": parent.pid, "process_started": parent.create_time()}
    write_json(run / "checkpoints" / ".owner.json", asdict(owner) | values | changes)


# --- convert ------------------------------------------------------------------------------------------


def test_one_file_holds_the_masters_bit_for_bit(newest: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "weights.safetensors"
    code, printed, _ = command("convert", newest, out, "--to", "safetensors")
    assert code == 0
    assert printed == f"{newest} -> {out}: 0.2 MB, fp32\n"
    contents, stored = read_checkpoint(newest), load_file(out)
    assert contents.masks is not None
    assert stored.keys() == contents.weights.keys()
    for name, weight in contents.weights.items():
        assert stored[name].dtype == torch.float32
        # Behind the freeze masters of pruned weights are zero themselves.
        assert stored[name].numpy().tobytes() == weight.numpy().tobytes(), name
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "step": "10", "masks": "applied"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "weights.safetensors"]


def test_in_the_ramp_masks_are_applied_unless_dense(run: Path, tmp_path: Path, command: Command) -> None:
    checkpoint = run / "checkpoints" / "step-0000005"
    contents = read_checkpoint(checkpoint)
    assert contents.masks is not None
    files = {}
    for name, options in {"sparse": [], "dense": ["--dense"], "bf16": ["--dtype", "bf16"]}.items():
        out = tmp_path / f"{name}.safetensors"
        assert command("convert", checkpoint, out, "--to", "safetensors", *options)[0] == 0
        files[name] = load_file(out)
    for name, weight in contents.weights.items():
        mask = contents.masks[name] if name in contents.masks else torch.ones_like(weight, dtype=torch.bool)
        masked = weight.masked_fill(~mask, 0.0)
        assert files["dense"][name].numpy().tobytes() == weight.numpy().tobytes()
        assert files["sparse"][name].numpy().tobytes() == masked.numpy().tobytes()
        assert files["bf16"][name].equal(masked.to(torch.bfloat16))
        assert files["bf16"][name].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_folder_loads_in_transformers(dtype: str, run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "model"
    code, printed, _ = command("convert", run, out, "--dtype", dtype)
    assert code == 0, printed
    contents = read_checkpoint(run / "checkpoints" / "step-0000010")
    assert contents.masks is not None
    model = AutoModelForPreTraining.from_pretrained(out, dtype="auto")
    expected = torch.float32 if dtype == "fp32" else torch.bfloat16
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, contents.weights[name].to(expected)), name
    query = AutoModelForMaskedLM.from_pretrained(out).get_parameter(QUERY)
    assert torch.equal(query == 0, ~contents.masks[QUERY])
    assert AutoTokenizer.from_pretrained(out)("ba be")["input_ids"][0] == 2
    assert MaskSet.load(out / MASK_FILE).digest() == contents.masks.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_a_dense_folder_has_no_masks(run: Path, tmp_path: Path, command: Command) -> None:
    checkpoint = run / "checkpoints" / "step-0000005"
    assert command("convert", checkpoint, tmp_path / "model", "--dense")[0] == 0
    assert not (tmp_path / "model" / MASK_FILE).exists()
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    assert torch.equal(model.get_parameter(QUERY), read_checkpoint(checkpoint).weights[QUERY])


def test_nothing_is_overwritten_unasked_and_nothing_precious_ever(
    run: Path, tmp_path: Path, command: Command
) -> None:
    file, folder, precious = tmp_path / "w.safetensors", tmp_path / "model", tmp_path / "precious"
    file.write_text("old")
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    assert command("convert", run, folder)[0] == 0

    def refused(*arguments: object) -> str:
        code, out, err = command("convert", run, *arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        return err

    single = ("--to", "safetensors")
    assert "exists; give another name, or --overwrite" in refused(file, *single)
    assert "exists; give another name, or --overwrite" in refused(folder)
    assert "holds no model" in refused(precious, "--overwrite")
    assert "is a folder; give the name of a file" in refused(folder, *single, "--overwrite")
    assert "is a file; give the name of a folder" in refused(file, "--overwrite")
    assert file.read_text() == "old"
    assert command("convert", run, file, *single, "--overwrite")[0] == 0
    assert QUERY in load_file(file)
    assert command("convert", run, folder, "--overwrite", "--dtype", "bf16")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "precious", "run", "w.safetensors"]
    assert (precious / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("form", ["folder", "safetensors"])
def test_a_broken_checkpoint_is_not_converted_and_leaves_nothing(
    form: str, newest: Path, tmp_path: Path, command: Command
) -> None:
    flip(weight_file(newest, 0))
    code, _, err = command("convert", newest, tmp_path / "out", "--to", form)
    assert code == 2
    assert err == f"{newest}: weights/rank-00000.safetensors does not match its checksum\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("")
    for form in ("folder", "safetensors"):
        code, _, err = command("convert", run, tmp_path / "file" / "out", "--to", form)
        assert code == 2
        assert err.startswith(f"{tmp_path / 'file' / 'out'}: not written: ")


# --- prune --------------------------------------------------------------------------------------------


def multiply_checkpoints(run: Path, steps: list[int]) -> None:
    """Put whole checkpoints of more steps beside those of the run."""
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:07d}"
        shutil.copytree(run / "checkpoints" / "step-0000010", folder)
        seal(folder, step=step)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir() if "step" in path.name)


def test_a_dry_run_says_what_the_real_one_then_does(run: Path, command: Command) -> None:
    multiply_checkpoints(run, [15, 20])
    left = run / "checkpoints" / ".step-0000025.start-1.partial"
    left.mkdir()
    (left / "half").write_bytes(b"x" * 500_000)
    before = names(run)
    options = ("prune", run, "--keep-last", 1, "--keep-every", 10)
    code, told, _ = command(*options, "--dry-run")
    assert code == 0
    assert names(run) == before
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    report = json.loads(command(*options, "--dry-run", "--json")[1])

    code, done, _ = command(*options)
    assert code == 0
    assert names(run) == ["step-0000010", "step-0000020"]
    assert told.replace("would delete", "deleted").replace("would be freed", "freed") == done
    assert done.splitlines() == [
        "deleted step-0000005 (0.6 MB)",
        "deleted step-0000015 (0.4 MB)",
        "deleted .step-0000025.start-1.partial (0.5 MB, left by a save that did not finish)",
        f"{run / 'checkpoints'}: 2 of 4 checkpoints stay (the newest 1 and multiples of 10); 1.5 MB freed",
    ]
    assert (
        size - sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) == report["freed_bytes"]
    )
    assert problem_with(run / "checkpoints" / "step-0000020") is None


def test_the_only_whole_one_stays_however_old_it_is(run: Path, command: Command) -> None:
    flip(weight_file(run / "checkpoints" / "step-0000010", 0))
    code, out, _ = command("prune", run, "--keep-last", 2)
    assert code == 0
    assert names(run) == ["step-0000005", "step-0000010"]
    assert "kept step-0000010, although broken, as too few are whole: weights/rank-00000" in out
    assert command("prune", run, "--keep-last", 1)[0] == 0
    assert names(run) == ["step-0000005"]
    flip(weight_file(run / "checkpoints" / "step-0000005", 0))
    assert command("prune", run, "--keep-last", 1)[0] == 0
    assert names(run) == ["step-0000005"]


def test_without_options_the_run_s_own_rule_holds(run: Path, command: Command) -> None:
    multiply_checkpoints(run, [15])
    report = json.loads(command("prune", run, "--json")[1])
    assert (report["keep_last"], report["keep_every"]) == (2, None)
    assert names(run) == ["step-0000010", "step-0000015"]


def test_a_checkpoint_whose_replacement_never_came_gets_its_name_back(run: Path, command: Command) -> None:
    folder = run / "checkpoints"
    (folder / "step-0000010").rename(folder / ".step-0000010.replaced")
    assert command("prune", run, "--keep-last", 1)[0] == 0
    assert names(run) == ["step-0000005", "step-0000010"]
    assert problem_with(folder / "step-0000010") is None


def test_a_living_run_is_left_alone(run: Path, command: Command) -> None:
    partial = run / "checkpoints" / ".step-0000020.start-1.partial"
    partial.mkdir()
    own(run)
    code, _, err = command("prune", run, "--keep-last", 1)
    assert code == 2
    assert f"process {os.getppid()} on this machine is training in this folder" in err
    assert names(run) == [partial.name, "step-0000005", "step-0000010"]
    # On another machine nobody can be asked: what it may be writing stays.
    own(run, host="elsewhere")
    code, out, _ = command("prune", run, "--keep-last", 1)
    assert code == 0
    assert f"kept {partial.name}: another machine may be writing it" in out
    assert names(run) == [partial.name, "step-0000010"]


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ls", "verify", "convert", "prune"])
def test_what_is_no_run_is_one_line_and_exit_code_2(name: str, tmp_path: Path, command: Command) -> None:
    out = [tmp_path / "out"] if name == "convert" else []
    code, printed, err = command(name, tmp_path / "nowhere", *out)
    assert (code, printed) == (2, "")
    assert err.startswith(f"{tmp_path / 'nowhere'}: no such folder; give a")
    code, printed, err = command(name, tmp_path, *out)
    assert (code, printed) == (2, "")
    assert err == f"{tmp_path}: neither a run folder nor a folder of checkpoints (no step-… in it)\n"


# --- the document -------------------------------------------------------------------------------------


def test_the_reader_in_the_document_reads_a_whole_checkpoint(finished: Path) -> None:
    """Without this package: the file format is what the document says."""
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?def read.*?)```", text, flags=re.DOTALL)
    assert "sparse_pretrain" not in code
    found: dict[str, Any] = {}
    exec(code, found)
    for step in ("step-0000005", "step-0000010"):
        folder = finished / "checkpoints" / step
        contents = read_checkpoint(folder)
        weights = found["read"](folder)
        assert weights.keys() == contents.weights.keys()
        for name, weight in contents.weights.items():
            assert weights[name].tobytes() == weight.numpy().tobytes(), name
        files = sorted((folder / "weights").iterdir())
        reader = FragmentReader(files)
        for name, moment in found["read"](folder, "exp_avg").items():
            assert moment.tobytes() == reader.whole("exp_avg", name).numpy().tobytes()
    with safe_open(weight_file(folder, 0), framework="pt") as file:
        assert any(key.startswith("nonzero/master/") for key in file.keys())  # noqa: SIM118 - not a mapping
