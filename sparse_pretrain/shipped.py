"""Files that travel with the package: recipes, DeepSpeed configs, sbatch templates.

In a checkout they lie where people edit them (`ds_configs/`, `slurm/` at the top); a wheel carries
copies under `sparse_pretrain/_shipped/`.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return the folder `name` ("ds_configs" or "slurm") of this installation."""
    inside_wheel = PACKAGE / "_shipped" / name
    return inside_wheel if inside_wheel.is_dir() else PACKAGE.parent / name


def shipped_recipes() -> list[Path]:
    """Return every shipped recipe, sorted by name."""
    return sorted((PACKAGE / "recipes").glob("*.yaml"))


def shipped_recipe(name: str) -> Path | None:
    """Return the shipped recipe called `name` (with or without `.yaml`), or None."""
    stem = name.removesuffix(".yaml")
    return next((path for path in shipped_recipes() if path.stem == stem), None)
