"""Worker processes: results, errors, no orphans."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from data_prep.parallel import Workers
from sparse_pretrain.errors import FailedError, UserError


def square(number: int) -> int:
    if number < 0:
        raise UserError(f"{number} is negative")
    if number == 13:
        os._exit(1)
    return number * number


@pytest.mark.parametrize("count", [1, 2])
def test_every_result_and_errors_as_they_are(count: int) -> None:
    workers = Workers(count)
    assert sorted(workers.run(square, range(10))) == [number**2 for number in range(10)]
    with pytest.raises(UserError, match="-1 is negative"):
        list(workers.run(square, [1, -1, 2]))
    # The same workers serve the next job.
    assert sorted(workers.run(square, [3, 2])) == [4, 9]
    workers.close()


def what_is_imported(_: int) -> tuple[str | None, set[str]]:
    main: str | None = getattr(sys.modules["__main__"], "__file__", None)
    return main, {"pandas", "transformers", "ftfy"} & sys.modules.keys()


def test_workers_import_neither_the_main_module_nor_what_takes_long() -> None:
    """Each worker would pay for it again: 0.3 s for the command line's module, 0.5 s for pandas."""
    workers = Workers(2)
    assert list(workers.run(what_is_imported, [1, 2])) == [(None, set()), (None, set())]
    workers.close()


def test_a_killed_worker_is_one_line() -> None:
    workers = Workers(2)
    with pytest.raises(FailedError, match=r"a worker process was killed.*fewer workers"):
        list(workers.run(square, [1, 13, 2]))
    workers.close()


def test_workers_die_with_a_killed_parent(tmp_path: Path) -> None:
    """Kill -9 gives the parent no chance to stop them."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from data_prep.parallel import Workers\n"
        "from tests.data_prep.test_parallel import square\n"
        "if __name__ == '__main__':\n"
        "    workers = Workers(2)\n"
        "    print(sorted(workers.run(square, range(4))), flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"[0, 1, 4, 9]\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
