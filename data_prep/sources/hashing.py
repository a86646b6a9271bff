"""Hashes of files, remembered: a resumed run must not read a whole dump only to know it again."""

import os
from collections.abc import Sequence
from pathlib import Path

from sparse_pretrain.files import read_json, sha256_file, sha256_json, write_json

CACHE = "~/.cache/sparse-pretrain"
# Hashing less takes less than a second.
WORTH_REMEMBERING = 256 * 2**20


def hash_files(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of one file, or of the list of several files' names and hashes."""
    if len(paths) == 1:
        return hash_file(paths[0])
    return sha256_json([[path.name, hash_file(path)] for path in paths])


def hash_file(path: Path) -> str:
    """Return a file's SHA-256; of a large one from memory, when neither size nor times have changed."""
    found = path.stat()
    if found.st_size < WORTH_REMEMBERING:
        return sha256_file(path)
    known = [str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    cache = Path(os.environ.get("SPARSE_PRETRAIN_CACHE", CACHE)).expanduser()
    memory = cache / "hashes" / f"{sha256_json(known)[:32]}.json"
    if memory.is_file():
        return str(read_json(memory)["sha256"])
    digest = sha256_file(path)
    write_json(memory, {"file": known, "sha256": digest})
    return digest
