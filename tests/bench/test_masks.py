"""The mask benchmark on a tiny model: every number is there and means something."""

import json
import os
import subprocess
import sys


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sparse_pretrain", "bench", "masks", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_the_json_has_the_promised_keys() -> None:
    done = bench("--model", "tiny", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert numbers["bytes_per_weight"] == 1.0
    assert numbers["packed_bytes_per_weight"] == 0.125
    # 2 layers of 4 x 64 x 64 + 2 x 64 x 256.
    assert numbers["prunable_weights"] == 2 * (4 * 64 * 64 + 2 * 64 * 256)
    assert numbers["ranks"] == 2
    for key in ("update_ratio", "step_overhead", "pruned_step_ratio"):
        assert 0 < numbers[key] < 1000, key
    assert numbers["mask_seconds_per_step"] < numbers["step_seconds"]


def test_an_unknown_model_is_a_mistake() -> None:
    done = bench("--model", "gpt")
    assert done.returncode == 2
    assert done.stderr.strip() == "--model = 'gpt': must be one of tiny, bert-base, bert-large"
