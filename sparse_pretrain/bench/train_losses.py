"""Do the reference's step and ours train the same thing? Both from one state, on the same tokens, step by step.

Every batch of ours is taken apart into the padded pairs that it is made of, with the same tokens masked, for the
reference; it gets our learning rate and our masks, too. What is left to differ: rounding, and what dropout drops.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparse_pretrain.bench.train_ours import recipe_of
from sparse_pretrain.bench.train_reference import Padded, ReferenceModel
from sparse_pretrain.bench.train_settings import LossCheck
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.masking import IGNORED
from sparse_pretrain.training.build import build_trainer
from sparse_pretrain.training.inputs import open_inputs
from sparse_pretrain.training.world import World


def measure(world: World, check: LossCheck, folder: Path) -> dict[str, Any]:
    """Train both side by side on one rank.

    Returns:
        `ours` and `reference`: the masked-language loss of every step, in nats a predicted token.
    """
    recipe = recipe_of_check(check, folder)
    inputs = open_inputs(recipe)
    trainer, _ = build_trainer(recipe, inputs, world, check.measurement.case.precision, [])
    if trainer.pruner is not None:
        trainer.pruner.after_step(0)
    size = recipe.batch.global_size
    loader = TrainingLoader(
        inputs.train, Slice(size, size, 0, 1), recipe.masking, inputs.table, recipe.seed, False
    )
    torch.manual_seed(check.seed)
    reference = ReferenceModel(
        world, check.measurement.case.precision, check.measurement.mode, check.measurement.start
    )
    if not check.dropout:
        reference.student.eval()
    ours, theirs = [], []
    for _ in range(check.steps):
        (batch,) = loader.next_step()
        if trainer.pruner is not None:
            for name, mask in trainer.pruner.masks.items():
                reference.masks[name].mask.copy_(mask)
        report, _ = trainer.train_step()
        ours.append(report.mlm_loss)
        theirs.append(float(reference.step(taken_apart(batch), report.learning_rate)))
    return {"ours": ours, "reference": theirs}


def recipe_of_check(check: LossCheck, folder: Path) -> TrainRecipe:
    """Return the recipe of our side: as it is timed, but short, and pruned by a schedule that fits."""
    measured = recipe_of(check.measurement, 1, folder).model_dump(mode="json", exclude_none=True)
    measured |= {"steps": check.steps, "seed": check.seed}
    measured["model"]["dropout"] = 0.1 if check.dropout else 0.0
    if "pruning" in measured:
        every = max(1, check.steps // 20)
        measured["pruning"] |= {"frequency": every, "ramp_end": 8 * every, "end": 16 * every}
    return TrainRecipe.model_validate(measured)


def taken_apart(batch: Batch) -> Padded:
    """Return the pairs of a batch of packed pairs, a row each, padded."""
    if batch.sequences is None or batch.token_type_ids is None or batch.next_sentence_labels is None:
        raise ValueError("the batch has no packed pairs")
    labels = torch.full((batch.input_ids.numel(),), IGNORED)
    labels[batch.positions] = batch.labels
    firsts = set(batch.sequences.firsts.tolist())
    parts = [slice(start, end) for start, end in pairwise(batch.sequences.bounds.tolist()) if start in firsts]

    def padded(values: Tensor, filling: int) -> Tensor:
        rows = [values.reshape(-1)[part] for part in parts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filling)

    return Padded(
        {
            "input_ids": padded(batch.input_ids, 0),
            "attention_mask": padded(torch.ones_like(batch.input_ids), 0),
            "token_type_ids": padded(batch.token_type_ids, 0),
        },
        padded(labels, IGNORED),
        batch.next_sentence_labels,
    )
