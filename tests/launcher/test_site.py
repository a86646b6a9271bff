"""A cluster's settings: where they are found, and what is said of wrong ones."""

from pathlib import Path

import pytest

from launcher.site import SITE_VARIABLE, Site, find_site, load_site, seconds_of
from sparse_pretrain.errors import UserError
from tests.launcher.cluster import ROOT

EXAMPLES = sorted((ROOT / "slurm" / "sites").glob("*.yaml"))

WRONG = {
    "time: 24:00:00": "time = 86400: write a time limit in quotes, such as '24:00:00'",
    "time: soon": "time = 'soon': must be a time limit such as '24:00:00'",
    "memory: lots": "memory = 'lots': must be a node's memory such as 64G",
    "partion: gpu": "partion: unknown key; did you mean 'partition'?",
    "nodes: 0": "nodes = 0: should be greater than or equal to 1",
    "ranks_per_node: 4\ngpus_per_node: 2": "gpus_per_node = 2: ranks_per_node = 4 on gpus_per_node = 2: NCCL takes one",
    "gpu_type: h100": "gpu_type = 'h100': needs gpus_per_node",
    "environment: {A: yes}": "environment.A = True: write it in quotes",
    "environment: {1A: x}": "'1A' is no name of a variable",
    "environment: {RANK: 0}": "RANK differs between ranks or jobs; the script sets it",
    "extra: [-x]": "'-x' must be one sbatch option",
    "venv: a\npython: b": "python = 'b': venv = a names the environment already: keep one",
    "venv: ~nobody-here/venv": "venv = '~nobody-here/venv': ~ names a home folder, and there is none",
    "container: {kind: pyxis}": "container.image = None: kind = pyxis needs an image",
    "container: {image: a.sif}": "container.image = 'a.sif': nothing runs it: set kind to pyxis or apptainer",
    "container: {kind: docker}": "container.kind = 'docker': should be 'none', 'pyxis' or 'apptainer'",
    "restart: {max_restart: 1}": "restart.max_restart: unknown key; did you mean 'max_restarts'?",
}


@pytest.mark.parametrize(("content", "expected"), WRONG.items())
def test_a_wrong_setting_is_explained_by_file_key_and_value(
    tmp_path: Path, content: str, expected: str
) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_site(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("2:30", 150),
        ("24:00:00", 86400),
        ("2-00", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, seconds: int) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_by_its_name_and_explains_itself(path: Path) -> None:
    site, found = load_site(path.stem)
    assert found == str(path)
    assert site != Site()
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_numbers_become_the_text_that_the_environment_holds(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("environment: {NCCL_IB_DISABLE: 1, A: 'yes'}\nmemory: 64000\n", encoding="utf-8")
    site, _ = load_site(str(path))
    assert site.environment == {"NCCL_IB_DISABLE": "1", "A": "yes"}
    assert site.memory == "64000"


def test_a_site_is_found_by_option_then_variable_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_site(None, {}) == (Site(), None)
    folder = tmp_path / ".config" / "sparse-pretrain"
    folder.mkdir(parents=True)
    for name in ("site", "other", "ethernet"):
        (folder / f"{name}.yaml").write_text(f"partition: {name}\n")
    assert load_site(None, {})[0].partition == "site"
    assert load_site(None, {SITE_VARIABLE: "other"})[0].partition == "other"
    assert load_site("~/.config/sparse-pretrain/site.yaml", {SITE_VARIABLE: "other"})[0].partition == "site"
    # The user's own comes before the example of the same name.
    assert find_site("ethernet") == folder / "ethernet.yaml"
    with pytest.raises(UserError, match=r"site 'nowhere': no such file.*ethernet, gpu-accounts, infiniband"):
        find_site("nowhere")
