"""The checkpoint benchmark on a tiny model: every number is there and means something."""

import json
import os
import subprocess
import sys
from pathlib import Path


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sparse_pretrain", "bench", "checkpoint", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_the_json_has_the_promised_keys(tmp_path: Path) -> None:
    done = bench("--model", "tiny", "--quick", "--json", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert 0 < numbers["async_stall_ratio"] < 10
    assert 0 < numbers["write_ratio"] < 10
    assert 0 < numbers["resume_s"] < 60
    # Beside weights, moments and masks: names, the manifest, config and tokenizer.
    assert 1 <= numbers["size_ratio"] < 1.02
    assert numbers["ranks"] == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    done = bench("--folder", str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.strip() == f"--folder = '{tmp_path / 'nowhere'}': no such folder"
