"""What a fine-tuning run keeps between epochs, so that one that was interrupted goes on.

The `Trainer`'s own checkpoints: weights, moments, learning rate, place in the data, random numbers. They are read with
`weights_only` (under ZeRO by DeepSpeed, without it), used only for the same recipe, data and number of ranks, and gone
when the run is finished.
"""

import json
import shutil
from pathlib import Path

from sparse_pretrain.config.load import to_yaml
from sparse_pretrain.finetune.evaluate import RECIPE
from sparse_pretrain.finetune.recipe import FinetuneRecipe

FOLDER = "unfinished"
PROVENANCE = "provenance.json"
# The last file that the Trainer writes of a checkpoint.
COMPLETE = "trainer_state.json"
# The last file of each rank, which the first one does not wait for.
OF_RANKS = "rng_state*.pth"


def keeps_epochs(recipe: FinetuneRecipe) -> bool:
    """Say whether a run has anything to go on from: epochs behind it, and nothing that only memory knows.

    The ranges that int8 training has observed are no part of the Trainer's checkpoints.
    """
    return recipe.training.epochs > 1 and recipe.quantization is None


def newest_epoch(recipe: FinetuneRecipe, fingerprint: str, ranks: int = 1) -> Path | None:
    """Return the checkpoint that a run of this recipe goes on from; None when it begins anew.

    Args:
        recipe: as it is now.
        fingerprint: of its texts and labels now.
        ranks: their number now; a checkpoint of another number has not what each of them needs.
    """
    output = recipe.output
    if not keeps_epochs(recipe) or not (output / FOLDER).is_dir():
        return None
    try:
        same_recipe = (output / RECIPE).read_text(encoding="utf-8") == to_yaml(recipe)
        about = json.loads((output / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not same_recipe or (about.get("data_fingerprint"), about.get("world_size", 1)) != (fingerprint, ranks):
        return None
    complete = [
        path.parent
        for path in (output / FOLDER).glob(f"checkpoint-*/{COMPLETE}")
        if ranks == 1 or len(list(path.parent.glob(OF_RANKS))) == ranks
    ]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def discard(output: Path) -> None:
    """Delete what an unfinished run has kept."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
