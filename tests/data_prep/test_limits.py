"""What does not fit: records larger than any document, and a disk that is full."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_pretrain.data.manifest import read_manifest
from tests.data_prep.corpus import prose

PREPARE = r"""
import re, sys
from pathlib import Path
from rich.console import Console
from data_prep.prepare import prepare
from data_prep.recipe import PrepareRecipe
prepare(PrepareRecipe.model_validate_json(sys.argv[1]), Console(quiet=True))
# Not ru_maxrss, which begins with what the process that started this one took.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) // 1024)
"""
# What one process takes to begin with, and room for a record of the largest size that is read.
MOST_MEBIBYTES = 700
COMMAND = "from sparse_pretrain.cli import main; main()"
MEBIBYTE = 2**20


def test_a_page_of_50_mb_and_an_endless_line_are_dropped_in_bounded_memory(
    tokenizers: Path, tmp_path: Path
) -> None:
    """The rest of their files is kept. A book of the same size is dropped unread."""
    page = "<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>\n"
    articles = [prose(seed, 40) for seed in range(20)]
    with (tmp_path / "dump.xml").open("w") as file:
        file.write("<mediawiki>\n")
        for number, text in enumerate(articles):
            file.write(page.format(f"Article {number}", text))
            if number == 10:
                file.write(page.format("Everything", "A sentence that is much like the others. " * 1_250_000))
        file.write("</mediawiki>\n")
    with (tmp_path / "lines.jsonl").open("w") as file:
        for seed in range(100, 120):
            file.write(json.dumps({"text": prose(seed, 40)}) + "\n")
            if seed == 110:
                file.write('{"text": "' + "x" * 120_000_000 + '"}\n')
    recipe = {
        "output": str(tmp_path / "out"),
        "sources": {
            "dump": {"kind": "wikipedia_dump", "path": str(tmp_path / "dump.xml")},
            "lines": {"kind": "jsonl", "path": str(tmp_path / "lines.jsonl")},
        },
        "tokenizer": str(tokenizers / "bert"),
        "sequence_length": 32,
        "validation_fraction": 0.2,
        "workers": 1,
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps(recipe)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MOST_MEBIBYTES
    for source in read_manifest(tmp_path / "out").sources:
        assert source.documents == 20
        assert source.dropped == {"too_long": 1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(("workers", "left"), [(1, 1.5), (2, 4.0)], ids=["early", "late"])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    tokenizers: Path, tmp_path: Path, small_disk: Path, workers: int, left: float
) -> None:
    source = tmp_path / "text.jsonl"
    with source.open("w") as file:
        file.writelines(json.dumps({"text": prose(seed, 200)}) + "\n" for seed in range(600))
    assert 4 * MEBIBYTE < source.stat().st_size < 12 * MEBIBYTE
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "sources": {"text": {"kind": "jsonl", "path": str(source)}},
        "tokenizer": str(tokenizers / "bert"),
        "sequence_length": 64,
        "validation_fraction": 0.2,
        "workers": workers,
        "format": "packed",
        "rows_per_shard": 500,
    }
    recipe.write_text(json.dumps(settings))  # JSON is YAML

    def run(output: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", COMMAND, "data", "prepare", str(recipe)]
        return subprocess.run([*command, f"output={output}"], capture_output=True, text=True, check=False)

    assert run(tmp_path / "whole").returncode == 0
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * int(6 * MEBIBYTE - left * MEBIBYTE))
    full = run(small_disk / "out")
    assert full.returncode == 2, full.stderr
    (line,) = full.stderr.strip().splitlines()
    assert "the disk is full; what is done is kept: make room and run again" in line
    assert not (small_disk / "out").exists()
    done = len(list((small_disk / ".out.work").rglob("completions/*")))
    assert done > 0
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert run(small_disk / "out").returncode == 0
    assert files(small_disk / "out") == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
