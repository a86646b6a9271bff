"""The command line itself: help, version, listings, dry runs."""

import json
import re
import resource
import subprocess
import sys
from typing import Any

import pytest
import typer
import typer.rich_utils
import yaml
from typer.testing import CliRunner

from sparse_pretrain import __version__
from sparse_pretrain.cli import app
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.shipped import shipped_recipes

HELP = """
import sys
from sparse_pretrain.cli import main
sys.argv = ["sparse-pretrain", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "deepspeed", "datasets", "pyarrow", "matplotlib"} & sys.modules.keys()
    print(f"imported: {sorted(heavy)}", file=sys.stderr)
"""


def every_command() -> list[tuple[str, ...]]:
    """Return the words that lead to each command, groups included."""
    found: list[tuple[str, ...]] = []

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found.append(words)
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def run(*arguments: str) -> str:
    # As wide and as plain whatever the terminal, and whatever an earlier test has set for it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.rich_utils, "MAX_WIDTH", 200)
        patch.setattr(typer.rich_utils, "FORCE_TERMINAL", False)
        plain = {"COLUMNS": "200", "TERM": "xterm", "FORCE_COLOR": None, "TTY_COMPATIBLE": None}
        done = CliRunner(env=plain).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_that_scripts_rely_on_exist() -> None:
    names = {" ".join(words) for words in every_command()}
    assert names >= {
        "data prepare",
        "data inspect",
        "train",
        "launch local",
        "release",
        "inspect",
        "finetune",
        "evaluate",
        "demo",
        "recipes",
    }


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_says_what_a_command_does_and_what_everything_means(words: tuple[str, ...]) -> None:
    text = run(*words, "--help")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines[0].startswith(" ".join(("Usage:", "root", *words)))
    assert lines[1][0].isupper()
    assert lines[1].endswith((".", ":"))
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    for parameter in command.params:
        explained = getattr(parameter, "help", None)
        assert explained, f"{parameter.name} of {words} has no help"


def examples() -> list[tuple[tuple[str, ...], list[str]]]:
    """Return command and arguments of every example in a help text."""
    found = []
    for words in every_command():
        command: Any = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        texts = [
            command.help or "",
            *(getattr(parameter, "help", None) or "" for parameter in command.params),
        ]
        for text in texts:
            for line in re.findall(r"Example: `sparse-pretrain (.+?)`", text):
                assert line.split()[: len(words)] == list(words)
                found.append((words, line.split()[len(words) :]))
            found += [
                (words, ["bert-base-85", *line.split()]) for line in re.findall(r"for example `(.+?)`", text)
            ]
    return found


def test_every_example_of_the_help_is_a_recipe_that_loads() -> None:
    from data_prep.recipe import PrepareRecipe
    from sparse_pretrain.finetune.recipe import FinetuneRecipe

    schemas: dict[tuple[str, ...], Any] = {
        ("data", "prepare"): PrepareRecipe,
        ("finetune",): FinetuneRecipe,
        ("launch", "local"): FinetuneRecipe,  # of anything but the usual bert-base-85
    }
    for words, arguments in examples():
        overrides = [argument for argument in arguments if "=" in argument]
        schema = TrainRecipe if arguments[0] == "bert-base-85" else schemas[words]
        load_recipe(arguments[0], overrides, schema)
    assert {words for words, _ in examples()} >= {
        ("teacher-logits",),
        ("launch", "local"),
        ("data", "prepare"),
        ("finetune",),
    }


@pytest.mark.parametrize("words", [(), ("train",), ("launch", "local"), ("data", "prepare"), ("finetune",)])
def test_help_does_not_wait_for_heavy_libraries(words: tuple[str, ...]) -> None:
    before = seconds_of_children()
    done = subprocess.run(
        [sys.executable, "-c", HELP, *words, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported: []\n"
    # Of a core: what others do on this machine is not the command's fault.
    assert seconds_of_children() - before < 2


def seconds_of_children() -> float:
    """Return the processor time of all child processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def test_version_and_module() -> None:
    assert run("--version") == f"{__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "sparse_pretrain", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_every_shipped_recipe_is_listed_with_its_purpose() -> None:
    lines = run("recipes").splitlines()
    assert [line.split()[0] for line in lines] == [path.stem for path in shipped_recipes()]
    assert all(len(line.split()) > 4 for line in lines)
    assert not any("#" in line for line in lines)


def test_a_dry_run_shows_the_recipe_and_the_numbers() -> None:
    text = run("train", "bert-base-85", "--dry-run", "--ranks", "8", "steps=200_000", "seed=7")
    recipe, _, table = text.partition("dry run: nothing was trained")
    assert TrainRecipe.model_validate(yaml.safe_load(recipe)) == load_recipe(
        "bert-base-85", ["steps=200000", "seed=7"], TrainRecipe
    )
    assert "110,106,428 parameters" in table
    assert "85,524,480 weights in 73 matrices" in table
    assert "200,000 (2,000 warm-up)" in table
    assert "8 ranks" in table
    assert "1 a step on each rank, 32 rows each" in table


def test_a_dry_run_says_when_micro_batches_are_uneven() -> None:
    text = run("train", "bert-base-85", "--dry-run", "--ranks", "6")
    assert "2 a step on each rank, uneven: 21 to 22 rows (256 rows on 6 ranks)" in text


def test_a_dry_run_for_scripts_counts_memory_by_rank() -> None:
    one, eight = (
        json.loads(run("train", "bert-base-85", "--dry-run", "--json", "--ranks", ranks))[
            "memory_per_rank_bytes"
        ]
        for ranks in ("1", "8")
    )
    # fp32 master and two moments of Adam: 12 bytes a parameter, shared among the ranks from stage 1 on.
    assert one["masters_and_moments"] == 12 * 110_106_428
    assert eight["masters_and_moments"] == one["masters_and_moments"] // 8
    assert eight["working_copy"] == one["working_copy"]


def test_a_command_without_arguments_explains_itself() -> None:
    done = CliRunner().invoke(app, ["train"])
    assert done.exit_code == 2
    assert "Missing argument" in done.output
    assert CliRunner().invoke(app, ["data"]).exit_code == 2
