"""Is a checkpoint whole? The manifest lists every file's size and checksum; nothing else is trusted."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from sparse_pretrain.checkpoint.checksum import checksum_file
from sparse_pretrain.checkpoint.layout import MANIFEST, saved_steps, step_folder
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json

FORMAT_VERSION = 2
# Checksums of one process; hashing leaves the interpreter's lock, so threads help where files are many.
THREADS = 4


class Ranks(Protocol):
    """What working together on a checkpoint needs of the ranks."""

    @property
    def rank(self) -> int:
        """This process's number."""
        ...

    @property
    def size(self) -> int:
        """Their number."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank."""
        ...


@dataclass(frozen=True)
class FileFacts:
    """What the manifest says of one file: its size, and its checksum (`checkpoint.checksum`)."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Manifest:
    """The list of a checkpoint's files.

    Attributes:
        step: optimizer steps done.
        run: identity of the run that wrote it.
        start: how often the run had been started by then (1: never restarted).
        ranks: number of ranks that wrote it.
        files: by path relative to the checkpoint, `/` between folders.
    """

    step: int
    run: str
    start: int
    ranks: int
    files: Mapping[str, FileFacts]

    def to_json(self) -> dict[str, Any]:
        """Return what `manifest.json` holds."""
        files = {name: vars(facts) for name, facts in sorted(self.files.items())}
        return {"version": FORMAT_VERSION, **vars(self), "files": files}

    @classmethod
    def from_json(cls, values: Any) -> "Manifest":
        """Read what `to_json` returned.

        Raises:
            ValueError: it is something else, or of another version.
        """
        try:
            if values["version"] != FORMAT_VERSION:
                raise ValueError(
                    f"format version {values['version']}, this program reads version {FORMAT_VERSION}"
                )
            files = {name: FileFacts(**facts) for name, facts in values["files"].items()}
            return cls(values["step"], values["run"], values["start"], values["ranks"], files)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    @property
    def total_bytes(self) -> int:
        """Bytes of all files, the manifest itself left out."""
        return sum(facts.bytes for facts in self.files.values())


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        ValueError: with what is wrong, without the folder's name.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"no {MANIFEST}: the save was not finished, or the file is lost")
    try:
        manifest = Manifest.from_json(read_json(folder / MANIFEST))
    except UserError:
        raise ValueError(f"{MANIFEST} is not valid JSON") from None
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is not readable ({error})") from None
    except OSError as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error.strerror})") from None
    outside = [
        name for name in manifest.files if PurePosixPath(name).is_absolute() or ".." in name.split("/")
    ]
    if outside:
        raise ValueError(f"{MANIFEST} names {outside[0]}, which lies outside the checkpoint")
    return manifest


def problem_with_file(folder: Path, name: str, facts: FileFacts, checksums: bool = True) -> str | None:
    """Return what is wrong with one file, or None; without `checksums` only its size is compared."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != facts.bytes:
            return f"{name} has {size} bytes, the manifest says {facts.bytes}"
        if checksums and checksum_file(path) != facts.xxh3:
            return f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except ValueError as error:
        # A name that no file can have.
        return f"{name!a} cannot be read ({error})"
    return None


def problem_with(folder: Path, checksums: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, or None when its manifest is there and every file matches.

    Args:
        folder: the checkpoint.
        checksums: read the files; else only sizes are compared.
    """
    files = listed_files(folder)
    return files if isinstance(files, str) else problem_with_files(folder, files, checksums)


def listed_files(folder: Path) -> Mapping[str, FileFacts] | str:
    """Return the files that a checkpoint's manifest lists, or what is wrong with the manifest."""
    try:
        return read_manifest(folder).files
    except ValueError as error:
        return str(error)


def problem_with_files(folder: Path, files: Mapping[str, FileFacts], checksums: bool = True) -> str | None:
    """Return what is wrong with the first of these files that is not what it should be, or None."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: problem_with_file(folder, name, files[name], checksums), sorted(files))
        return next((problem for problem in found if problem is not None), None)


def newest_whole(
    checkpoints: Path, ranks: Ranks, say: Callable[[str], None]
) -> tuple[Path | None, dict[int, str]]:
    """Find the newest whole checkpoint; all ranks share the reading of it (collective).

    Args:
        checkpoints: the run's checkpoint folder.
        ranks: the collectives.
        say: told of every broken checkpoint that is passed over, and why.

    Returns:
        The checkpoint, None when the run has none yet; and by step what is wrong with newer ones.

    Raises:
        UserError: on every rank; there are checkpoints and none is whole: starting afresh would hide the loss.
    """
    broken: dict[int, str] = {}
    # What rank 0 sees, for all: on a network disk the others may see an older folder for a moment.
    steps: list[int] = ranks.gather(saved_steps(checkpoints) if ranks.rank == 0 else None)[0]
    for step in reversed(steps):
        folder = step_folder(checkpoints, step)
        listed = ranks.gather(listed_files(folder) if ranks.rank == 0 else None)[0]
        if isinstance(listed, str):
            problem: str | None = listed
        else:
            mine = {name: listed[name] for name in sorted(listed)[ranks.rank :: ranks.size]}
            problems = ranks.gather(problem_with_files(folder, mine))
            problem = next((found for found in problems if found is not None), None)
        if problem is None:
            for other, reason in broken.items():
                say(f"{step_folder(checkpoints, other)}: {reason}; taking {folder.name} instead")
            return folder, broken
        broken[step] = problem
    if broken:
        step, reason = next(iter(broken.items()))
        raise UserError(
            f"{step_folder(checkpoints, step)}: {reason}; none of {len(broken)} checkpoints is whole: restore one, "
            "or choose another output"
        )
    return None, broken
