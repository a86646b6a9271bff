"""Worker processes: order, bounded reading ahead, no orphans."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data_prep.parallel import Workers
from sparse_pretrain.errors import UserError


def make_square() -> Callable[[int], int]:
    def square(number: int) -> int:
        if number < 0:
            raise UserError(f"{number} is negative")
        time.sleep(0.002 * (number % 3))
        return number * number

    return square


@pytest.mark.parametrize("count", [1, 2])
def test_results_in_order_without_reading_far_ahead(count: int) -> None:
    read = 0

    def numbers() -> Iterator[int]:
        nonlocal read
        for number in range(50):
            read += 1
            yield number

    with Workers(make_square, count) as workers:
        for done, result in enumerate(workers.map(numbers()), start=1):
            assert result == (done - 1) ** 2
            assert read - done <= 2 * count
        assert done == 50
        # The same workers serve the next source, and their errors arrive as they are.
        with pytest.raises(UserError, match="-1 is negative"):
            list(workers.map([1, -1, 2]))


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    """Kill -9 gives the parent no chance to stop them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from data_prep.parallel import Workers\n"
        "from tests.data_prep.test_parallel import make_square\n"
        "if __name__ == '__main__':\n"
        "    with Workers(make_square, 2) as workers:\n"
        "        print(list(workers.map(range(4))), flush=True)\n"
        "        time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"[0, 1, 4, 9]\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
