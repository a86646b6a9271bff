"""What is wrong on one machine of several."""

from pathlib import Path


def fake_package(folder: Path, name: str, version: str) -> Path:
    """Make a folder that, on PYTHONPATH, lets a package appear to be another version; return it."""
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder
