"""`train` is one rank under any launcher that sets torchrun's variables: the same losses as `launch local`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import read_rows, tiny_prepared

PYTHON = Path(sys.executable)
TRAIN = ["train", "train-tiny", "data.path=data", "steps=8", "pruning.end=8"]
COMMANDS = {
    "local": [str(PYTHON), "-m", "sparse_pretrain", "launch", "local", *TRAIN[1:], "--nproc", "2"],
    "torchrun": [str(PYTHON.with_name("torchrun")), "--nproc-per-node", "2", "-m", "sparse_pretrain", *TRAIN],
    "deepspeed": [
        *(str(PYTHON.with_name("deepspeed")), "--num_accelerators", "2", "--no_local_rank"),
        *("--module", "sparse_pretrain", *TRAIN),
    ],
}


@pytest.mark.slow
def test_torchrun_and_the_deepspeed_launcher_train_like_launch_local(tmp_path: Path) -> None:
    tiny_prepared(tmp_path / "data")
    losses = {}
    for name, command in COMMANDS.items():
        done = subprocess.run(
            [*command, f"output={name}"],
            cwd=tmp_path,
            # They give ranks different numbers of threads, and sums of another order differ in the last bit.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, (name, done.stdout + done.stderr)
        losses[name] = [row["loss"] for row in read_rows(tmp_path / name, "train")]
    assert len(losses["local"]) == 8
    assert losses["torchrun"] == losses["deepspeed"] == losses["local"]
