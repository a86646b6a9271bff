"""The process that `bench data` measures in: it imports everything once, and every measurement is a fork of it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sparse_pretrain.errors import FailedError
from sparse_pretrain.files import read_json, write_json


class Measurement(NamedTuple):
    """What to measure: its kind (see `data_child`), a name of its own, and what the kind asks for."""

    kind: str
    name: str
    arguments: dict[str, Any]


class Measurer:
    """Starts measurements; used as a context manager, and then ended with it."""

    def __init__(self, tokenizer: str, folder: Path) -> None:
        """Start the process, which imports in the background.

        Args:
            tokenizer: folder or name, loaded once.
            folder: where arguments, results and error messages go.
        """
        self._folder = folder
        command = [sys.executable, "-m", "sparse_pretrain.bench.data_child", tokenizer]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        with (folder / "errors").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def run(self, measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
        """Measure, all of them side by side, each in a process whose memory is its own; return their results.

        With none this returns as soon as the imports are done.

        Raises:
            FailedError: one of them failed.
        """
        for one in measurements:
            write_json(self._folder / f"{one.name}.arguments.json", one.arguments)
        places = [[one.kind, str(self._folder / one.name)] for one in measurements]
        requests, answers = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        try:
            print(json.dumps(places), file=requests, flush=True)
            failed = json.loads(answers.readline())
        except (OSError, ValueError):
            failed = ["start"]
        if failed:
            message = (self._folder / "errors").read_text(errors="replace").strip().splitlines()
            raise FailedError(
                f"the benchmark's process ({failed[0]}) failed: {(message or ['no message'])[-1]}"
            )
        return [read_json(self._folder / f"{one.name}.result.json") for one in measurements]

    def __enter__(self) -> "Measurer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
