"""What a user gets wrong, through the real command line: one line, exit code 2, nothing written."""

import bz2
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from sparse_pretrain import cli
from tests.tiny import tiny_prepared

Run = Callable[..., str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data and two teachers: one of the data's vocabulary, one of another."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_prepared(folder / "data")
    for name, size in (("teacher", 65), ("other-teacher", 97)):
        config = AutoConfig.for_model(
            "bert",
            vocab_size=size,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def workplace(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with `inputs/` in it and no hub."""
    (tmp_path / "inputs").symlink_to(inputs)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def mistake(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the command's own `main` in this process; return the one line it printed.

    With `reports` the command may say on stdout how far it came before it met the mistake.
    """

    def run(*arguments: str, reports: bool = False) -> str:
        before = contents(workplace)
        monkeypatch.setattr(sys, "argv", ["sparse-pretrain", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output, errors = capfd.readouterr()
        printed = errors if reports else output + errors
        assert ended.value.code == 2, printed
        assert contents(workplace) == before
        return one_line(printed)

    return run


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "sparse_pretrain", *arguments], capture_output=True, text=True, timeout=120
    )


def program_mistake(*arguments: str) -> str:
    """Run the command as a user does, in the present folder; return the one line it printed."""
    before = contents(Path.cwd())
    done = run_program(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert contents(Path.cwd()) == before
    return one_line(done.stdout + done.stderr)


def one_line(printed: str) -> str:
    lines = printed.splitlines()
    assert len(lines) == 1, printed
    assert "Traceback" not in lines[0]
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with the hash of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def tiny(*overrides: str, data: str = "inputs/data") -> list[str]:
    """The tiny recipe's command line with more settings."""
    return ["train", "train-tiny", "output=run", f"data.path={data}", *overrides]


SETTINGS = {
    "modell.source=bert": "train-tiny.yaml: modell: unknown key; did you mean 'model'?",
    "pruning.taget_sparsity=0.9": "pruning.taget_sparsity: unknown key; did you mean 'target_sparsity'?",
    "steps=many": "train-tiny.yaml: steps = 'many': should be a valid integer",
    "pruning=3": "train-tiny.yaml: pruning = 3: should be a valid dictionary",
    "pruning.target_sparsity=1.5": "train-tiny.yaml: pruning.target_sparsity = 1.5: should be less than 1",
    "pruning.include=[nothing]": "pruning: no weight matches include=['nothing']",
    "model.config.vocab_size=30522": "vocabulary mismatch: the model from scratch has 30522 tokens, the "
    "prepared data's tokenizer has 65",
    "model.config.max_position_embeddings=16": "data: rows have 32 tokens, the model has 16 positions",
    "model.config.model_type=bertt": "model.config.model_type = 'bertt': no such architecture; did you mean "
    "'bert'?",
    "model.config.hidden_size=33": "model.config: The hidden size (33) is not a multiple",
    "model.config.num_hidden_layers=two": "model.config: Validation error for field 'num_hidden_layers'",
    "model.source=runs/no/model": "model source runs/no/model: no such folder",
    "distillation.teacher=no-model": "model source no-model: no such folder, and no such model on the hub",
    "distillation.teacher=inputs/data": "model source inputs/data: the folder holds no usable config.json",
    "distillation.teacher=inputs/other-teacher": "distillation.teacher = 'inputs/other-teacher': its "
    "vocabulary has 97 tokens, the student's 65",
    "engine.config=none.json": "none.json: no such file",
    "pruning.structure.kind=n_of_m": "target_sparsity = 0.8: 2 of 4 means 0.5",
    "pruning.structure.kind=bloc": "pruning.structure",
    "pruning.allocation={kind: global, groups: {ffn: [nothing]}}": "pruning.allocation.groups.ffn: no prunable "
    "weight is found by it; names look like bert.encoder",
    "pruning.allocation={kind: table, targets: {query: 85}}": "pruning.allocation.targets.query = 85: "
    "should be less than 1. Did you mean 0.85?",
    "pruning.allocation={kind: uniform, minimum_kept: 0.3}": "minimum_kept = 0.3 leaves at most 0.7 to prune",
    "pruning.schedule=table": "table: needed with schedule = table, and only there",
    "pruning.regrowth_until=-1": "pruning.regrowth_until = -1: should be greater than or equal to 0",
    "pruning.scorer={kind: custom, name: mine}": "pruning.scorer.name = mine: no such entry point of the group "
    "sparse_pretrain.scorers",
    "guard.skipped_in_a_row=0": "guard.skipped_in_a_row = 0: should be greater than or equal to 1",
}


@pytest.mark.parametrize(("setting", "expected"), SETTINGS.items())
def test_a_wrong_setting(mistake: Run, setting: str, expected: str) -> None:
    assert expected in mistake(*tiny(setting))


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on a GPU")
def test_fp16_on_a_cpu(mistake: Run) -> None:
    assert mistake(*tiny("precision=fp16")).startswith("precision = 'fp16': needs a GPU")


def test_missing_files(mistake: Run) -> None:
    assert mistake("train", "nothing.yaml", "output=run").startswith("nothing.yaml: no such recipe file")
    assert mistake(*tiny(data="nowhere")).startswith("nowhere: no manifest.json: not a prepared folder")
    assert mistake("release", "nowhere", "out").startswith("nowhere: neither a checkpoint nor a run folder")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["data", "inspect", "nowhere"], "nowhere: no manifest.json: not a prepared folder"),
        (["inspect", "runs/no/model"], "runs/no/model: no such "),
        (["finetune", "finetune-movie-sentiment", "model=runs/no/model", "output=run"], "runs/no/model"),
        (["evaluate", "runs/no/model", "--task", "finetune-movie-sentiment"], "runs/no/model"),
        (["release", "inputs/data", "out"], "inputs/data: neither a checkpoint nor a run folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_commands_on_what_is_not_there(mistake: Run, arguments: list[str], expected: str) -> None:
    assert expected in mistake(*arguments)


def prepare(*overrides: str) -> list[str]:
    """The tiny preparation's command line with more settings."""
    settings = ("output=run", "tokenizer=inputs/data/tokenizer", "sources.books=null", *overrides)
    return ["data", "prepare", "data-tiny", *settings]


def test_a_corrupt_dump(mistake: Run, workplace: Path) -> None:
    page = "<page><title>A</title><ns>0</ns><id>1</id><revision><id>2</id><text>ba be bi.</text></revision></page>"
    (workplace / "cut.xml.bz2").write_bytes(bz2.compress(f"<mediawiki>{page}</mediawiki>".encode())[:-20])
    line = mistake(*prepare("sources.dump.path=cut.xml.bz2"))
    assert line.startswith("cut.xml.bz2: truncated")


def test_an_empty_corpus(mistake: Run, workplace: Path) -> None:
    (workplace / "books").mkdir()
    (workplace / "books" / "short.txt").write_text("ba be.\n")
    line = mistake(*prepare("sources.dump=null", "sources.books={kind: books, path: books}"), reports=True)
    assert line == "no documents left; dropped: 1 too_short (minimum_characters = 20)"


def test_an_output_that_is_a_file(mistake: Run, workplace: Path) -> None:
    (workplace / "run").write_text("my thesis")
    assert mistake(*tiny()) == "output: cannot write run/logs/rank-0.log (Not a directory)"


@pytest.fixture
def damaged(workplace: Path) -> Path:
    """A copy of the data to damage."""
    return Path(shutil.copytree(workplace / "inputs" / "data", workplace / "damaged"))


def test_a_shard_cut_short(mistake: Run, damaged: Path) -> None:
    shard = damaged / "train" / "shard-00001.arrow"
    os.truncate(shard, 100)
    expected = f"damaged/train/{shard.name}: 100 bytes, the manifest says "
    assert mistake(*tiny(data="damaged")).startswith(expected)


def test_a_shard_of_noise(mistake: Run, damaged: Path) -> None:
    shard = damaged / "validation" / "shard-00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    expected = f"damaged/validation/{shard.name}: not a shard of rows of 32 tokens"
    assert mistake(*tiny(data="damaged")).startswith(expected)


def test_data_without_its_tokenizer(mistake: Run, damaged: Path) -> None:
    shutil.rmtree(damaged / "tokenizer")
    assert mistake(*tiny(data="damaged")).startswith("damaged/tokenizer: no usable tokenizer")


def test_data_with_another_tokenizer(mistake: Run, damaged: Path) -> None:
    path = damaged / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace('"ba":5,', "").replace('"ba": 5,', ""))
    expected = "vocabulary mismatch: damaged/tokenizer has 64 tokens, the data's manifest says 65"
    assert mistake(*tiny(data="damaged")).startswith(expected)


def test_several_mistakes_are_a_line_each(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sparse-pretrain", *tiny("steps=0", "seed=x")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("yaml: ")[2].split()[0] for line in lines] == ["seed", "steps"]


def test_the_program_itself(workplace: Path) -> None:
    """The same through a process of its own: exit code, stderr, quiet libraries."""
    expected = "train-tiny.yaml: pruning.target_sparsity = 90: should be less than 1. Did you mean 0.9?"
    assert program_mistake(*tiny("pruning.target_sparsity=90")).endswith(expected)
    shutil.copytree("inputs/teacher", "teacher")
    Path("teacher/model.safetensors").unlink()
    # Found when the weights are loaded, behind the checks: the log that was begun is taken back.
    expected = "model source teacher: the folder holds no usable config.json and weights"
    assert program_mistake(*tiny("distillation.teacher=teacher")).startswith(expected)


def test_a_batch_that_two_ranks_cannot_share(workplace: Path) -> None:
    """Both ranks find it; it is said once."""
    arguments = ["launch", "local", *tiny("batch.global_size=1")[1:], "--nproc", "2"]
    assert program_mistake(*arguments).startswith(
        "batch.global_size = 1: fewer rows than 2 ranks; set it to at"
    )


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_or_is_broken(workplace: Path) -> None:
    """The run folder of real training stays as it is, byte for byte."""
    short = ("steps=2", "pruning=null", "learning_rate.kind=linear", "checkpoint.every=2")
    done = run_program(*tiny(*short))
    assert done.returncode == 0, done.stdout + done.stderr
    wider = tiny(*short, "model.config.hidden_size=48")
    line = program_mistake(*wider)
    assert line.startswith(
        "run/checkpoints/step-0000002: the recipe would train something else from here on: "
    )
    assert (
        "model.config.hidden_size: 32 -> 48; change it back, go on nevertheless with --allow-change" in line
    )
    line = program_mistake(*wider, "--allow-change")
    assert "run/checkpoints/step-0000002: " in line
    assert "give the same model, or start in another output folder" in line
    tiny_prepared(workplace / "other", seed=1)
    assert program_mistake(*tiny(*short, data="other")).startswith("data: these rows have fingerprint ")
    weights = next(Path("run/checkpoints/step-0000002/weights").iterdir())
    whole = weights.read_bytes()
    weights.unlink()
    assert f"weights/{weights.name} is missing; none of 1 checkpoints is whole" in program_mistake(
        *tiny(*short)
    )
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    line = program_mistake(*tiny(*short))
    assert line.startswith(
        f"run/checkpoints/step-0000002: weights/{weights.name} does not match its checksum"
    )
    assert "none of 1 checkpoints is whole" in line
    weights.write_bytes(whole)
    line = program_mistake(*tiny(*short, "checkpoint.resume=false"))
    assert line.startswith("checkpoint.resume = false: run/checkpoints holds checkpoints")
    Path("taken").mkdir()
    Path("taken/checkpoints").write_text("a file")
    line = program_mistake("train", "train-tiny", "output=taken", "data.path=inputs/data")
    assert line.startswith("taken/checkpoints: File exists")
