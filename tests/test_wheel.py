"""A wheel in an empty environment, outside the checkout, does what the checkout does."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.distributed import ROOT
from tests.tiny import read_rows, tiny_prepared

DRY_RUNS = """
import json, sys
from pathlib import Path
import launcher, sparse_pretrain
from sparse_pretrain.cli import app
from sparse_pretrain.shipped import shipped_folder, shipped_recipes
from typer.testing import CliRunner

parameters = {}
for path in shipped_recipes():
    if not path.stem.startswith(("data-", "finetune-")):
        done = CliRunner().invoke(app, ["train", path.stem, "--dry-run", "--json"])
        assert done.exit_code == 0, f"{path.stem}: {done.output} {done.exception!r}"
        parameters[path.stem] = json.loads(done.stdout)["parameters"]
files = [sparse_pretrain.__file__, launcher.__file__, *map(str, shipped_folder("slurm").iterdir())]
print(json.dumps({"parameters": parameters, "files": files}))
"""


class Installation:
    """The wheel in an environment of its own, used from a folder outside the checkout.

    Dependencies come from the environment that runs the tests: a path in a .pth file adds its packages,
    but Python does not follow the .pth files in there, so the editable installation stays invisible.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "environment"
        self.workplace = folder / "workplace"
        self.workplace.mkdir()
        build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
        checked([*build, str(ROOT)], ROOT)
        checked([sys.executable, "-m", "venv", "--without-pip", str(self.environment)], folder)
        python = self.environment / "bin" / "python"
        (wheel,) = folder.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        checked([*pip, "install", "--no-deps", "--no-index", "--quiet", str(wheel)], folder)
        (packages,) = (self.environment / "lib").glob("python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in the workplace and return what it printed."""
        return checked([str(self.environment / "bin" / program), *arguments], self.workplace)


def checked(command: list[str], folder: Path) -> str:
    """Run a command that must succeed, without hints to the checkout, and return its output."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_every_training_recipe_dry_runs_from_the_wheel(installation: Installation) -> None:
    answer = json.loads(installation.run("python", "-c", DRY_RUNS))
    assert all(file.startswith(str(installation.environment)) for file in answer["files"])
    assert {Path(file).name for file in answer["files"]} >= {"train.sbatch", "README.md"}
    shipped = {path.stem for path in (ROOT / "sparse_pretrain" / "recipes").glob("*.yaml")}
    assert set(answer["parameters"]) == {
        name for name in shipped if not name.startswith(("data-", "finetune-"))
    }
    assert answer["parameters"]["bert-base-85"] > 109_000_000


@pytest.mark.slow
def test_the_installed_command_helps_plans_and_trains(installation: Installation) -> None:
    assert "Sparse pre-trained language models" in installation.run("sparse-pretrain", "--help")
    tiny_prepared(installation.workplace / "data" / "tiny")
    assert "dry run: nothing was trained" in installation.run(
        "sparse-pretrain", "train", "train-tiny", "--dry-run"
    )
    assert not (installation.workplace / "runs").exists()
    installation.run("sparse-pretrain", "train", "train-tiny")
    run = installation.workplace / "runs" / "train-tiny"
    rows = read_rows(run, "train")
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert rows[-1]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert (run / "checkpoints" / "step-0000010" / "manifest.json").is_file()
    # Made from the wheel: no checkout whose commit it could name.
    assert json.loads((run / "provenance.json").read_text())["git_commit"] is None
