"""What a push would send: the files of a model folder, and a model card that fits its name on the hub."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from sparse_pretrain.checkpoint.card import (
    UNKNOWN_LICENSE,
    ZEROS,
    Facts,
    front_matter,
    hub_datasets,
    model_card,
)
from sparse_pretrain.checkpoint.folder import model_path, read_facts, read_folder
from sparse_pretrain.checkpoint.inspect import Report, inspect_folder
from sparse_pretrain.errors import FailedError, UserError
from sparse_pretrain.files import read_json, show_bytes
from sparse_pretrain.pruning.masks import MaskSet

CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Everything that one push sends.

    Attributes:
        repo: `owner/name` on the hub.
        private: whether only its owner may see it.
        files: by name in the repository: a file here, or the content itself.
        left_out: names of hidden files and folders beside them, which stay here.
    """

    repo: str
    private: bool
    files: dict[str, Path | bytes]
    left_out: list[str] = field(default_factory=list)

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def plan_upload(folder: Path, repo: str, private: bool, license_id: str | None) -> Upload:
    """Check a model folder and list what a push sends; touches no network.

    Args:
        folder: a release, a fine-tuned run or its model, any folder with a Hugging Face model.
        repo: `owner/name` on the hub.
        private: whether only its owner may see it.
        license_id: the hub's identifier of the weights' license; None: as the folder's card has it.

    Raises:
        UserError: no model there.
        FailedError: weights outside the masks are not zero, values are NaN, or files do not belong together.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    place = Path(model_path(folder))
    contents = read_folder(place)
    report = inspect_folder(contents)
    if not report["check"]["ok"]:
        raise FailedError(f"{place}: not pushed: {'; '.join(report['check']['problems'])}")
    entries = sorted(place.iterdir())
    chosen = {path.name: path for path in entries if path.is_file() and not path.name.startswith(".")}
    files: dict[str, Path | bytes] = dict(chosen)
    files[CARD] = card_content(place, report, contents.masks, repo, license_id).encode()
    left_out = [path.name for path in entries if path.name not in chosen]
    return Upload(repo, private, dict(sorted(files.items())), left_out)


def card_content(
    folder: Path, report: Report, masks: MaskSet | None, repo: str, license_id: str | None
) -> str:
    """Return the model card to send.

    Our own, as `release` wrote it, is written again for the repository's name. One that somebody has edited stays,
    but for the license when that is given, and for a header when it has none.
    """
    facts = read_facts(str(folder)) or facts_of(folder, report, masks)
    file = folder / CARD
    if not file.is_file():
        return model_card(facts, repo, license_id or UNKNOWN_LICENSE)
    text = file.read_text(encoding="utf-8")
    header, body = split_card(text)
    if not header:
        return front_matter(facts, license_id or UNKNOWN_LICENSE) + "\n\n" + text
    stated = license_id or str(header.get("license", UNKNOWN_LICENSE))
    title = next((line[2:] for line in body.splitlines() if line.startswith("# ")), "")
    if body == split_card(model_card(facts, title))[1]:
        return model_card(facts, repo, stated)
    if license_id is None:
        return text
    shown = yaml.safe_dump({**header, "license": stated}, sort_keys=False, allow_unicode=True)
    return f"---\n{shown}---{body}"


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Return a card's header and what follows it; no header: an empty one and all of it.

    Raises:
        UserError: the header is not YAML.
    """
    parts = text.split("---", 2) if text.startswith("---") else []
    if len(parts) < 3:
        return {}, text
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise UserError(f"{CARD}: its header is not valid YAML ({' '.join(str(error).split())})") from None
    return (header, parts[2]) if isinstance(header, dict) else ({}, text)


def facts_of(folder: Path, report: Report, masks: MaskSet | None) -> Facts:
    """Return what is known of a model that no `release` wrote: its zeros, and what its fine-tuning left beside it."""
    recipe, metrics = folder.parent / "recipe.yaml", folder.parent / "metrics.json"
    ours = recipe.is_file() and metrics.is_file()
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8")) if ours else {}
    scores = read_json(metrics)["metrics"] if ours else {}
    named = (settings.get("task") or {}).get("dataset")
    return {
        "architecture": report["architecture"],
        "prunable": report["prunable"],
        "total": report["total"],
        "layers": report["layers"],
        "masks_digest": masks.digest() if masks is not None else ZEROS if report["masks"] == ZEROS else None,
        "recipe": settings,
        "metrics": {f"{split} {name}": value for split, row in scores.items() for name, value in row.items()},
        "versions": {},
        "datasets": hub_datasets([f"{named}/train"]) if named else [],
    }


def describe(upload: Upload, console: Console) -> None:
    """Print what would be sent: repository, visibility, files and sizes."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)

    say(f"would push to {upload.repo}, {'private' if upload.private else 'public'}, in one commit:")
    width = max(map(len, upload.files))
    for name in upload.files:
        written = " (written for this repository)" if isinstance(upload.files[name], bytes) else ""
        say(f"  {name:<{width}}  {upload.size(name):>14,} bytes{written}")
    total = sum(map(upload.size, upload.files))
    say(f"{len(upload.files)} files, {show_bytes(total)}; nothing was sent")
    if upload.left_out:
        say(f"left out: {', '.join(upload.left_out)}")
