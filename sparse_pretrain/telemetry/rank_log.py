"""The files that take what ranks print, and that take it back when a run did not begin."""

import os
from pathlib import Path
from typing import BinaryIO

from sparse_pretrain.errors import UserError


class RankLog:
    """`logs/rank-N.log` of one rank, appended to by each start of the run.

    Attributes:
        path: the file.
    """

    def __init__(self, run_folder: Path, rank: int) -> None:
        self.path = run_folder / "logs" / f"rank-{rank}.log"
        # A resumed run appends: only what comes after this belongs to this start.
        self._start = self.path.stat().st_size if self.path.exists() else 0
        self._made: list[Path] = []
        self._opened = False

    def open(self) -> BinaryIO:
        """Open the file for a rank to append to, making its folders.

        Raises:
            UserError: the run's folder is no folder, or cannot be written to.
        """
        folders = [self.path.parent, *self.path.parent.parents]
        self._made = [folder for folder in folders if not folder.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = self.path.open("ab")
        except OSError as error:
            raise UserError(f"output: cannot write {self.path} ({error.strerror})") from None
        self._opened = True
        return handle

    def tail(self, lines: int) -> list[str]:
        """Return the last non-empty lines that this start wrote, oldest first."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as handle:
            handle.seek(self._start)
            text = handle.read().decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def forget(self) -> None:
        """Take this start's lines back, and the file and folders that were made for them."""
        if not self._opened:
            return
        if self._start:
            os.truncate(self.path, self._start)
            return
        self.path.unlink(missing_ok=True)
        for folder in self._made:
            if any(folder.iterdir()):
                return
            folder.rmdir()
