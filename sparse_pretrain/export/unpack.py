"""The way back from a packed folder, whichever format it has, to a plain one."""

from pathlib import Path

from rich.console import Console

from sparse_pretrain.export.bitmask import Facts, open_bitmask
from sparse_pretrain.export.packed import PackedFile, write_plain_folder
from sparse_pretrain.export.two_four import TWO_FOUR_FILE, open_two_four


def unpack(path: str | Path, out: Path, console: Console, overwrite: bool = False) -> Facts:
    """Write a 2:4 or bitmask folder, or file, as a plain Hugging Face folder with dense weights, and its masks.

    Raises:
        UserError: missing, truncated or corrupt; something else is at `out`; the disk refused.
    """
    place = Path(path).expanduser()
    is_two_four = (place / TWO_FOUR_FILE).is_file() or place.name == TWO_FOUR_FILE
    opened: PackedFile = open_two_four(place) if is_two_four else open_bitmask(place)
    return write_plain_folder(opened, str(path), out, console, overwrite)
