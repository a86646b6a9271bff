"""Checkpoints of a few bytes, made by the real primitives: staged, written, committed."""

from collections.abc import Callable
from pathlib import Path

from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.fence import Claim, claim
from sparse_pretrain.checkpoint.integrity import FileFacts
from sparse_pretrain.checkpoint.layout import STATE, weight_file
from sparse_pretrain.checkpoint.staging import commit, describe_files, prepare_staging
from sparse_pretrain.files import write_json

RANKS = 3


def write_save(
    checkpoints: Path, step: int, mine: Claim, content: bytes = b"weights", ranks: int = RANKS
) -> dict[str, FileFacts]:
    """Stage a save and write its files, as rank 0 and the other ranks would."""
    folder = prepare_staging(checkpoints, step, mine, needed=1)
    write_json(folder / STATE, {"step": step, "start": mine.start})
    files = describe_files(folder)
    for rank in range(ranks):
        path = weight_file(folder, rank)
        path.write_bytes(content * (rank + 1))
        files[path.relative_to(folder).as_posix()] = FileFacts(path.stat().st_size, checksum_file(path))
    return files


def save(
    checkpoints: Path,
    step: int,
    content: bytes = b"weights",
    mine: Claim | None = None,
    between: Callable[[], None] = lambda: None,
) -> Path:
    """Save, by a new start of the run unless one is given; `between` is called before the commit."""
    mine = mine or claim(checkpoints)
    files = write_save(checkpoints, step, mine, content)
    between()
    return commit(checkpoints, step, mine, RANKS, files)[0]


class Alone:
    """A run of one rank."""

    rank = 0
    size = 1

    def gather(self, value: object) -> list[object]:
        return [value]


def quiet(text: str) -> None:
    """Say nothing."""
