"""Pushing to the hub: the real client against a server that speaks the hub's endpoints."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import hf_hub_download
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from typer.testing import CliRunner

from sparse_pretrain.checkpoint.fence import claim
from sparse_pretrain.checkpoint.layout import CHECKPOINTS, MODEL, STATE, weight_file
from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.checkpoint.shards import MASTER, Piece, write_rank
from sparse_pretrain.checkpoint.staging import commit, describe_files, prepare_staging
from sparse_pretrain.checkpoint.upload import split_card
from sparse_pretrain.cli import app
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import write_json
from sparse_pretrain.pruning.masks import MASK_FILE
from tests.checkpoint.hub_server import TOKEN, Hub, Repository, serve
from tests.export.models import classifier_folder
from tests.finetune.models import tiny_contents

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    return release(tiny_contents(folder / "model"), folder / "release", QUIET)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and a process that is logged in to it and to no other."""
    with serve() as hub:
        # The client reads these from the environment once, when it is imported.
        constants = {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for key, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def push(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `release` in this process; return everything it printed, or the error's one line."""

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["release", *map(str, arguments)])
        if isinstance(done.exception, UserError | FailedError):
            text = f"{type(done.exception).__name__}: {done.exception}"
            assert "\n" not in text
        else:
            assert done.exception is None, done.exception
            text = done.output
        printed = capfd.readouterr()
        assert TOKEN not in text + printed.out + printed.err
        return text

    return run


def test_a_release_arrives_private_in_one_commit_byte_for_byte(
    hub: Hub, push: Callable[..., str], released: Path, tmp_path: Path
) -> None:
    assert "pushed" in push(released, "--push", "me/sparse-bert")
    repository = hub.repositories["me/sparse-bert"]
    assert repository.private
    assert len(repository.commits) == 1
    sent = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    assert set(sent) == {path.name for path in released.iterdir()}
    assert {"model.safetensors", MASK_FILE, "sparsity.json", "config.json", "README.md"} <= set(sent)
    for name, content in sent.items():
        if name != "README.md":
            assert content == (released / name).read_bytes(), name
        assert TOKEN.encode() not in content
    card = sent["README.md"].decode()
    assert 'from_pretrained("me/sparse-bert")' in card
    assert "model=me/sparse-bert" in card
    header, _ = split_card(card)
    assert header == {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["sparse-pretrain", "sparse", "pruning", "prune-once-for-all"],
        "base_model": "google-bert/bert-base-uncased",
    }
    # And back, by its name, through the same server.
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("me/sparse-bert", name, local_dir=tmp_path / "back")
    model = AutoModel.from_pretrained(tmp_path / "back")
    name = "encoder.layer.0.output.dense.weight"
    assert model.get_parameter(name).equal(load_file(released / "model.safetensors")[f"bert.{name}"])


def test_public_has_to_be_said_and_an_existing_repository_keeps_its_visibility(
    hub: Hub, push: Callable[..., str], released: Path
) -> None:
    push(released, "--push", "me/open", "--public", "--license", "apache-2.0")
    assert not hub.repositories["me/open"].private
    assert split_card(hub.repositories["me/open"].files["README.md"].decode())[0]["license"] == "apache-2.0"
    assert "exists and is public, not private; say --public" in push(
        released, "--push", "me/open", "--replace"
    )
    hub.repositories["me/closed"] = Repository(private=True)
    assert "exists and is private, not public" in push(released, "--push", "me/closed", "--public")
    assert "pushed" in push(released, "--push", "me/closed")


def test_nothing_is_written_over_without_being_asked_and_never_anything_but_ours(
    hub: Hub, push: Callable[..., str], released: Path
) -> None:
    push(released, "--push", "me/model")
    ours = hub.repositories["me/model"]
    assert "holds" in (message := push(released, "--push", "me/model"))
    assert "--replace" in message
    ours.files |= {"notes.md": b"mine", "pytorch_model.bin": b"of an older model"}
    push(released, "--push", "me/model", "--replace", "--license", "mit")
    assert len(ours.commits) == 2
    assert ours.files["notes.md"] == b"mine"
    assert "pytorch_model.bin" not in ours.files
    assert b"license: mit" in ours.files["README.md"]

    theirs = Repository(private=True, files={"thesis.tex": b"years of work"})
    hub.repositories["me/thesis"] = theirs
    assert "holds no model of ours" in push(released, "--push", "me/thesis", "--replace")
    assert theirs.files == {"thesis.tex": b"years of work"}
    assert theirs.commits == []


def test_a_push_that_broke_off_goes_on_and_leaves_no_half_commit(
    hub: Hub, push: Callable[..., str], released: Path
) -> None:
    hub.broken = 1
    assert "the hub has a fault (507" in push(released, "--push", "me/model")
    assert hub.repositories["me/model"].commits == []
    push(released, "--push", "me/model")
    assert len(hub.repositories["me/model"].commits) == 1
    assert hub.puts == 3  # two files, one of them twice
    assert hub.repositories["me/model"].files[MASK_FILE] == (released / MASK_FILE).read_bytes()


def test_every_mistake_is_one_line(
    hub: Hub, push: Callable[..., str], released: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("model", "me/model/x", "me/mo del", "me/-model", "datasets/me/x"):
        assert "must be OWNER/NAME" in push(released, "--push", name)
    assert "has it write permission (403: You have no rights in them)" in push(
        released, "--push", "them/model"
    )
    assert "license" in push(released, "--push", "me/model", "--license", "do what you want!")
    assert "belongs to --push" in push(released, tmp_path / "out", "--dry-run")
    assert "give a folder" in push(released)
    assert "no model here" in push(tmp_path, "--push", "me/model")
    hub.requests.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "does not know the token" in push(released, "--push", "me/model")
    monkeypatch.delenv("HF_TOKEN")
    assert "no token" in push(released, "--push", "me/model")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in push(released, "--push", "me/model")
    assert hub.requests == ["GET /api/whoami-v2"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "no connection to http://127.0.0.1:9" in push(released, "--push", "me/model")


def test_a_dry_run_says_what_would_be_sent_and_touches_nothing(
    hub: Hub, push: Callable[..., str], released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (released / ".cache").mkdir(exist_ok=True)
    before = {path.name: path.read_bytes() for path in released.iterdir() if path.is_file()}
    told = push(released, "--push", "me/model", "--dry-run")
    (released / ".cache").rmdir()
    assert "would push to me/model, private, in one commit" in told
    for name in ("model.safetensors", MASK_FILE):
        line = next(line for line in told.splitlines() if line.strip().startswith(name))
        assert f"{(released / name).stat().st_size:,} bytes" in line
    assert "left out: .cache" in told
    assert hub.requests == []
    assert {path.name: path.read_bytes() for path in released.iterdir()} == before


def test_a_fine_tuned_run_is_pushed_with_a_card_of_its_own(
    hub: Hub, push: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    classifier_folder(run / "model")
    task = {"dataset": "glue", "subset": "sst2"}
    settings = {"model": "me/sparse-bert", "task": task, "training": {"learning_rate": 3e-5}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(settings))
    scores = {"metrics": {"validation": {"accuracy": 0.91}}}
    (run / "metrics.json").write_text(json.dumps(scores))
    push(run, "--push", "me/sst2")
    sent = hub.repositories["me/sst2"].files
    assert not (run / "model" / "README.md").exists()
    assert set(sent) == {path.name for path in (run / "model").iterdir()} | {"README.md", ".gitattributes"}
    header, body = split_card(sent["README.md"].decode())
    assert header["pipeline_tag"] == "text-classification"
    assert header["base_model"] == "me/sparse-bert"
    assert header["datasets"] == ["glue"]
    assert 'AutoModelForSequenceClassification.from_pretrained("me/sst2")' in body
    assert "validation accuracy: 0.9100" in body
    assert "MaskLock.from_source" in body
    # The tag says that it is ours: a second time is a matter of asking.
    assert "--replace" in push(run, "--push", "me/sst2")
    assert "pushed" in push(run, "--push", "me/sst2", "--replace", "--license", "mit")


def test_a_model_that_fails_its_check_is_not_pushed(
    hub: Hub, push: Callable[..., str], released: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in released.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, broken / "model.safetensors")
    assert "outside the masks are not zero" in push(broken, "--push", "me/model")
    assert hub.repositories == {}


def save_run(run: Path) -> Path:
    """A run folder whose newest checkpoint a training has not made, but might have."""
    contents = tiny_contents(run / "source")
    checkpoints = run / CHECKPOINTS
    folder = prepare_staging(checkpoints, contents.step, mine := claim(checkpoints), needed=1)
    shutil.copytree(contents.model_folder, folder / MODEL)
    assert contents.masks is not None
    contents.masks.save(folder / MASK_FILE)
    state = {"step": 100, "recipe": contents.recipe, "metrics": {}, "versions": {}, "start": mine.start}
    write_json(folder / STATE, {**state, "loader": {"fingerprint": "f1a9e7"}})
    files = describe_files(folder)
    pieces = [Piece(MASTER, name, 0, weight.flatten()) for name, weight in contents.weights.items()]
    shapes = {name: weight.shape for name, weight in contents.weights.items()}
    path = weight_file(folder, 0)
    files[path.relative_to(folder).as_posix()] = write_rank(path, pieces, shapes, {})
    commit(checkpoints, contents.step, mine, 1, files)
    return run


def test_a_dry_run_of_a_checkpoint_leaves_nothing_behind(
    hub: Hub, push: Callable[..., str], tmp_path: Path
) -> None:
    run = save_run(tmp_path / "run")
    told = push(run, tmp_path / "deep" / "out", "--push", "me/model", "--dry-run", "--public")
    assert "would push to me/model, public" in told
    assert "model.safetensors" in told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert hub.requests == []
    # What would stop the real thing stops the dry run too, and the network is asked before anything is written.
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    assert "is not empty" in push(run, tmp_path / "out", "--push", "me/model", "--dry-run")
    assert "403" in push(run, tmp_path / "new", "--push", "them/model")


@pytest.mark.slow
def test_checkpoint_to_hub_in_one_command_of_its_own_process(hub: Hub, tmp_path: Path) -> None:
    """The settings as users give them, through the environment; every byte that the process prints is looked at."""
    run = save_run(tmp_path / "run")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "sparse_pretrain", "release", str(run), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--push", "me/model"], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/me/model (private)" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    sent = hub.repositories["me/model"].files
    for path in (tmp_path / "out").iterdir():
        assert sent[path.name] == path.read_bytes(), path.name
        assert TOKEN.encode() not in path.read_bytes()
