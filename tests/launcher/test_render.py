"""The sbatch scripts: exactly these texts, and no value in them is ever run as code.

After a change that is meant, write them anew and read the difference:

    UPDATE_RENDERED=1 python -m pytest tests/launcher/test_render.py
"""

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

import launcher.render
from launcher.job import Job
from launcher.pipeline.render_command import render_command_stage
from launcher.pipeline.stages import Element, StageJob
from launcher.render import code, directive, only_written, render, render_by_hand, shell
from launcher.site import Site, load_site
from sparse_pretrain.errors import UserError
from tests.launcher.cluster import ROOT, SILENT_PYTHON, FakeNode, directives, words

RENDERED = Path(__file__).parent / "rendered"
JOB = Job(
    name="bert-85",
    recipe="bert-base-85",
    overrides=("data.path=/shared/data", "output=/shared/runs/85"),
    output=Path("/shared/runs/85"),
    folder=Path("/home/ada/work"),
    nodes=2,
    ranks_per_node=2,
    time="12:00:00",
    steps=100_000,
    bin="/home/ada/sparse-pretrain/.venv/bin",
)
HOSTILE = Job(
    name='-x "quoted" `touch a` # 100 % ünïcode',
    recipe="-it's a recipe; touch a.yaml",
    overrides=("output=$(touch a)", "model.source=two\nlines", "a=\\", "b='\"'"),
    output=Path("/shared/$(touch a)/100 %/'run'"),
    folder=Path("/home/ada/my work"),
    nodes=1,
    ranks_per_node=1,
    time="2-00",
    steps=10,
    allow_change=True,
)
COMMANDS = StageJob(
    name="tasks",
    needs=("release",),
    site=Site(gpus_per_node=1, signal_seconds=0),
    site_file=None,
    output=Path("/shared/pipeline"),
    folder=Path("/home/ada/work"),
    time="4:00:00",
    bin="/home/ada/sparse-pretrain/.venv/bin",
    elements=tuple(
        Element(
            f"tasks {task}",
            number,
            ("sparse-pretrain", "finetune", task),
            Path(f"/shared/pipeline/done/{task}"),
        )
        for number, task in enumerate(("sst2", "mnli", "it's; touch a"))
    ),
    at_once=2,
)
CONTAINER = {"image": "/images/sparse pretrain.sqsh", "mounts": ["/shared:/shared", "/scratch:/scratch"]}
SITES: dict[str, Site] = {
    "no-site": Site(),
    "pyxis": Site.model_validate({"gpus_per_node": 2, "container": {"kind": "pyxis", **CONTAINER}}),
    "apptainer": Site.model_validate(
        {
            "gpus_per_node": 2,
            "container": {"kind": "apptainer", **CONTAINER},
            "venv": "/opt/venv",
            "requeue": False,
            "signal_seconds": 0,
        }
    ),
}


def rendered_cases() -> dict[str, str]:
    """Return every script that is kept, by the name of its file."""
    examples = {path.stem: load_site(str(path))[0] for path in (ROOT / "slurm" / "sites").glob("*.yaml")}
    cases = {name: render(site, JOB) for name, site in {**SITES, **examples}.items() if "tainer" not in name}
    unbound = {**JOB.__dict__, "bin": "/opt/venv/bin"}
    return {
        **cases,
        "apptainer": render(SITES["apptainer"], Job(**unbound)),
        "hostile": render(Site(), HOSTILE),
        "elastic-stage": render(
            Site(), replace(JOB, min_nodes=1, done=Path("/shared/pipeline/done/prune-1"))
        ),
        "commands": render_command_stage(COMMANDS, COMMANDS.elements[1:]),
    }


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")


def test_the_rendered_scripts_are_those_that_are_kept() -> None:
    cases = rendered_cases()
    if os.environ.get("UPDATE_RENDERED"):
        for old in RENDERED.glob("*.sbatch"):
            old.unlink()
        for name, text in cases.items():
            (RENDERED / f"{name}.sbatch").write_text(text, encoding="utf-8")
        (ROOT / "slurm" / "train.sbatch").write_text(render_by_hand(Site(nodes=2)), encoding="utf-8")
    assert {path.stem for path in RENDERED.glob("*.sbatch")} == set(cases)
    for name, text in cases.items():
        assert text == (RENDERED / f"{name}.sbatch").read_text(encoding="utf-8"), name


def test_the_script_for_editing_by_hand_is_rendered_from_the_same_template() -> None:
    """What SLURM needs is known in one place."""
    kept = (ROOT / "slurm" / "train.sbatch").read_text(encoding="utf-8")
    assert kept == render_by_hand(Site(nodes=2))


@pytest.mark.parametrize(
    "path", [*sorted(RENDERED.glob("*.sbatch")), ROOT / "slurm" / "train.sbatch"], ids=lambda path: path.stem
)
def test_bash_accepts_every_script(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    assert not [line for line in text.split("\n") if line != line.rstrip()]
    assert "\n\n\n" not in text


def test_the_directives_say_what_site_and_job_say() -> None:
    site, _ = load_site("gpu-accounts")
    assert directives(render(site, JOB)) == {
        "--job-name": "bert-85",
        "--nodes": "2",
        "--ntasks-per-node": "2",
        "--cpus-per-task": "12",
        "--gpus-per-node": "h100:8",
        "--partition": "gpu",
        "--account": "nlp-group",
        "--qos": "preemptible",
        "--constraint": "h100",
        "--exclude": "gpu[013-014]",
        "--mem": "0",
        "--exclusive": None,
        "--time": "12:00:00",
        "--signal": "USR2@180",
        "--requeue": None,
        "--open-mode": "append",
        "--chdir": "/home/ada/work",
        "--output": "/shared/runs/85/slurm/job-%j.out",
        "--licenses": "scratch",
        "--mail-type": "END,FAIL",
    }


def test_the_nodes_own_disk_is_a_setting_that_the_users_own_overrides_win_over() -> None:
    site = Site(local_disk="/scratch/my disk")
    script = render(site, Job(**{**JOB.__dict__, "overrides": ("checkpoint.local=/other",)}))
    assert script.index("""'checkpoint.local="/scratch/my disk"'""") < script.index("checkpoint.local=/other")


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "\x1b[31m", "\x85", "\u2028", "\0", ""])
def test_a_name_that_no_directive_can_hold_is_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match="name = '"):
        render(Site(), Job(**{**JOB.__dict__, "name": name}))


def test_what_cannot_be_written_is_named() -> None:
    with pytest.raises(UserError, match=r"output = .*backslash"):
        render(Site(), Job(**{**JOB.__dict__, "output": Path("/shared/a\\b")}))
    with pytest.raises(UserError, match=r"override = 'a=\\udcff': .*UTF-8"):
        render(Site(), Job(**{**JOB.__dict__, "overrides": ("a=\udcff",)}))
    with pytest.raises(UserError, match=r"environment\.A = .*NUL"):
        render(Site(environment={"A": "\0"}), JOB)
    with pytest.raises(UserError, match=r"extra: --comment = 'a\\x85b'"):
        render(Site(extra=("--comment=a\x85b",)), JOB)
    with pytest.raises(UserError, match="ranks-per-node: ranks_per_node = 2 on gpus_per_node = 1"):
        render(Site(gpus_per_node=1), JOB)
    with pytest.raises(UserError, match="--time = '12:00:00': must be longer than signal_seconds = 43200"):
        render(Site(signal_seconds=43200), JOB)


def test_the_template_cannot_print_what_passed_no_filter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for text, error in (("{{ name }}", TypeError), ("{{ nonsense | shell }}", UndefinedError)):
        (tmp_path / "train.sbatch.j2").write_text(text)
        monkeypatch.setattr(launcher.render, "shipped_folder", lambda _: tmp_path)
        with pytest.raises(error):
            render(Site(), JOB)
    assert only_written(shell("a b")) == "'a b'"
    assert only_written(code("a b")) == "a b"


PIECES = (
    "$(touch canary)",
    "`touch canary`",
    "';touch canary;'",
    '";touch canary;"',
    "\ntouch canary\n",
    "\n#SBATCH --account=canary\n",
    "${HOME}",
    "!!",
    "\\",
    "'",
    '"',
    "--",
    "-n",
    " ",
    "#",
    "%",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "* ? [a-z]",
    "~",
    "ü漢😀",
    "a=b",
)
ANYTHING = st.lists(
    st.sampled_from(PIECES)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    max_size=5,
).map("".join)
ON_ONE_LINE = ANYTHING.map(lambda text: "".join(c for c in text if c.isprintable())).filter(bool)
PATH_PART = ON_ONE_LINE.map(lambda text: text.replace("/", "").replace("\\", "")[:40]).filter(
    lambda text: text.strip(".") != ""
)


@given(value=ON_ONE_LINE)
def test_sbatch_reads_a_directive_back_as_it_was(value: str) -> None:
    assert words(f" --name={directive(value)} --next") == [f"--name={value}", "--next"]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # Each example is a script that runs: making a failing one smaller takes minutes.
    phases=[Phase.explicit, Phase.generate],
)
@given(
    name=ON_ONE_LINE,
    recipe=ANYTHING.filter(bool),
    overrides=st.lists(ANYTHING, max_size=3),
    run=PATH_PART,
    site=st.fixed_dictionaries(
        {
            "account": ON_ONE_LINE,
            "exclude": st.lists(ON_ONE_LINE, max_size=2),
            "modules": st.lists(ANYTHING.filter(bool), max_size=2),
            "environment": st.dictionaries(st.sampled_from(["A", "NCCL_DEBUG"]), ANYTHING),
            "container": st.fixed_dictionaries(
                {
                    "kind": st.just("apptainer"),
                    "image": ON_ONE_LINE.map(lambda name: f"./{name}"),
                    "mounts": st.lists(ON_ONE_LINE, max_size=2),
                }
            )
            | st.just({}),
        }
    ),
    allow_change=st.booleans(),
)
def test_no_name_override_or_path_is_ever_run(
    name: str, recipe: str, overrides: list[str], run: str, site: dict[str, Any], allow_change: bool
) -> None:
    """The script runs in bash; ranks get recipe and overrides to the letter, and nothing else happens."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        node = FakeNode(folder, python=SILENT_PYTHON)
        before = set(folder.iterdir())
        job = node.job(
            name=name,
            recipe=recipe,
            overrides=tuple(overrides),
            output=folder / run,
            allow_change=allow_change,
        )
        cluster = Site.model_validate(site)
        script = render(cluster, job)
        assert node.start(script) == 0, node.output.read_text()
        options = ["--allow-change"] if allow_change else []
        assert node.calls("sparse-pretrain") == [["train", *options, "--", recipe, *overrides]]
        assert node.calls("module") == [["load", module] for module in cluster.modules]
        start, end = (call[3:] for call in node.calls("python3"))
        assert start[:2] == ["start", str(folder / run)]
        assert end[:2] == ["end", str(folder / run)]
        made = {path.name for path in set(folder.iterdir()) - before}
        assert made == {"calls", "slurm_script", "job.out"}
        found = directives(script)
        assert found["--job-name"] == name
        assert found["--account"] == site["account"]
        assert found.get("--exclude") == (",".join(site["exclude"]) or None)
        assert found["--output"] == f"{folder / run}".replace("%", "%%") + "/slurm/job-%j.out"
        assert len(found) == 11 + bool(site["exclude"])


def test_variables_of_the_site_reach_the_ranks_and_those_of_other_launchers_do_not(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, python=SILENT_PYTHON)
    node.environment = {"RANK": "3", "WORLD_SIZE": "4", "OMP_NUM_THREADS": "64", "SLURM_CPUS_PER_TASK": "2"}
    (node.bin / "sparse-pretrain").write_text("#!/usr/bin/env bash\nexport -p > environment\n")
    site = Site(
        environment={"GLOO_SOCKET_IFNAME": "$(touch canary) 'ib0'"}, preamble=("FROM=preamble", "export FROM")
    )
    assert node.start(render(site, node.job())) == 0
    done = subprocess.run(
        ["bash", "-c", "env -i bash -c 'source environment; env -0'"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert seen["GLOO_SOCKET_IFNAME"] == "$(touch canary) 'ib0'"
    assert (seen["FROM"], seen["OMP_NUM_THREADS"]) == ("preamble", "2")
    assert (seen["MASTER_ADDR"], seen["MASTER_PORT"]) == ("n1", "20077")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(seen)
    assert seen["PATH"].split(":")[0] == str(node.bin)


def test_a_module_that_does_not_load_ends_the_job_before_it_trains(tmp_path: Path) -> None:
    node = FakeNode(tmp_path, python=SILENT_PYTHON)
    (node.bin / "module").write_text("#!/bin/sh\necho no such module >&2; exit 1\n")
    assert node.start(render(Site(modules=("cuda",)), node.job())) == 1
    assert not node.calls("srun")
