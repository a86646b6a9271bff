"""`sparse-pretrain plan`, as users call it."""

import json
from pathlib import Path

import pytest

from sparse_pretrain.cli import app, main
from sparse_pretrain.costs.hardware import DEVICES, MeasuredLink, find_device, save_device


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sparse-pretrain", "plan", *arguments])
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_it_is_a_command() -> None:
    assert "plan" in [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_json_has_the_recipe_the_best_choice_and_the_scaling(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picture = tmp_path / "scaling.png"
    arguments = ("bert-base-85", "batch.global_size=64", "--nodes", "2", "--gpu", "a100-40gb")
    assert call(monkeypatch, *arguments, "--figure", str(picture), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"]["ranks"] == 16
    assert said["best"]["step_seconds"] <= said["recipe"]["step_seconds"] * 1.01
    assert said["runner_up"]["why"]
    assert [point["ranks"] for point in said["scaling"]][-1] == 1024
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_tables_name_what_limits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, "bert-base-85", "--gpu", "h200", "--interconnect", "ethernet-25g") == 0
    said = capsys.readouterr().out
    for words in (
        "tokens/s",
        "MFU",
        "GPU-hours",
        "runner-up",
        "gradient reduction",
        "rows per GPU exhausted",
    ):
        assert words in said


def test_a_device_file_is_read_again(tmp_path: Path) -> None:
    link = MeasuredLink(ranks=2, latency=1e-4, all_reduce={"bf16": 1e-9}, all_gather={"bf16": 1e-9})
    device = DEVICES["cpu"].model_copy(update={"local_measured": [link]})
    save_device(tmp_path / "here.json", device)
    assert find_device(str(tmp_path / "here.json")) == device


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bert-base-85", "--gpu", "h1000"), "--gpu = 'h1000': give one of h100"),
        (("bert-base-85", "--gpu", "{file}"), "device.json: name: Field required"),
        (("bert-base-85", "--interconnect", "string"), "--interconnect = 'string': must be one of"),
        (("bert-base-85", "--nodes", "64"), "batch.global_size = 256: fewer rows than 512 ranks"),
        (("bert-base-85", "--measure", "out.json"), "takes no recipe"),
        ((), "give a recipe, or --measure"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    file = tmp_path / "device.json"
    file.write_text("{}")
    assert call(monkeypatch, *(argument.format(file=file) for argument in arguments)) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
