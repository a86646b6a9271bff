"""What stored logits hold, and what a student reads from them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM

from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.distillation.stored_logits import (
    StoredLogits,
    StoredLogitsError,
    bytes_per_position,
    shard_path,
)
from sparse_pretrain.distillation.top_logits import top_logits
from sparse_pretrain.errors import UserError
from sparse_pretrain.models.pretraining import PretrainingModel, arguments
from sparse_pretrain.training.inputs import open_inputs
from tests.training.stored_logits import TOP_K, altered, broken_copy, recipe_of, stored_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data, a teacher, and its logits in shards of one step."""
    return stored_folder(tmp_path_factory.mktemp("stored"))


def test_a_pass_without_a_row_of_its_own_reads_nothing(folder: Path) -> None:
    """6 rows one by one on 4 ranks: the last one runs its only row a second time, for the collectives."""
    recipe = recipe_of(folder, batch={"global_size": 6, "micro_size": 1})
    inputs = open_inputs(recipe)
    part = Slice(6, 1, 3, 4)
    loader = TrainingLoader(inputs.train, part, recipe.masking, inputs.table, recipe.seed, True)
    stored = StoredLogits(folder / "logits", torch.device("cpu"))
    own, again = (stored(batch) for batch in loader.batches_at(12))
    assert len(own.ids) > 0
    assert [tuple(column.shape) for column in again] == [(0, TOP_K), (0, TOP_K), (0,)]


def test_any_slice_of_the_stream_reads_the_teachers_own_top_logits(folder: Path) -> None:
    """Three ranks with micro-batches of their own read what one process wrote."""
    recipe = recipe_of(folder, batch={"global_size": 6, "micro_size": 1})
    inputs = open_inputs(recipe)
    model = PretrainingModel(AutoModelForMaskedLM.from_pretrained(folder / "teacher").eval())
    stored = StoredLogits(folder / "logits", torch.device("cpu"))
    for rank in range(3):
        loader = TrainingLoader(
            inputs.train, Slice(6, 1, rank, 3), recipe.masking, inputs.table, recipe.seed, True
        )
        for batch in loader.batches_at(12):
            found = stored(batch)
            with torch.no_grad():
                expected = top_logits(model(*arguments(batch)).tokens, TOP_K, 3.0)
            assert (found.ids[:, 0] == expected.ids[:, 0]).all()
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-2, atol=1e-3)
            torch.testing.assert_close(found.log_rest, expected.log_rest, rtol=0, atol=1e-5)


def test_what_a_shard_holds_and_costs(folder: Path) -> None:
    shard = load_file(folder / "logits" / "logits-00000.safetensors")
    positions = int(shard["offsets"][-1])
    assert {name: (column.dtype.name, column.shape) for name, column in shard.items()} == {
        "offsets": ("int64", (9,)),
        "rows": ("uint64", (8,)),
        "ids": ("uint16", (positions, TOP_K)),
        "logits": ("float16", (positions, TOP_K)),
        "log_rest": ("float32", (positions,)),
    }
    assert (shard["logits"][:, 0] == 0).all()
    assert (np.diff(shard["logits"], axis=1) <= 0).all()
    assert bytes_per_position(64, 30_522) == 260
    assert bytes_per_position(64, 250_002) == 388


def test_a_shard_that_breaks_during_a_run_is_a_failure_and_no_mistake(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder)
    inputs = open_inputs(recipe)
    loader = TrainingLoader(inputs.train, Slice(8, 8, 0, 1), recipe.masking, inputs.table, recipe.seed, True)
    with pytest.raises(StoredLogitsError, match="broken shard of logits"):
        StoredLogits(broken_copy(folder, tmp_path / "logits"), torch.device("cpu"))(loader.batches_at(0)[0])
    assert not issubclass(StoredLogitsError, UserError)


def test_a_sample_of_other_tokens_is_a_failure(folder: Path, tmp_path: Path) -> None:
    """Masking that changed between two versions leaves the manifest as it was."""
    rows = load_file(shard_path(folder / "logits", 0))["rows"]
    rows[3] += 1
    stored = StoredLogits(altered(folder, tmp_path / "logits", rows=rows), torch.device("cpu"))
    recipe = recipe_of(folder)
    inputs = open_inputs(recipe)
    loader = TrainingLoader(inputs.train, Slice(8, 1, 0, 1), recipe.masking, inputs.table, recipe.seed, True)
    batches = loader.batches_at(0)
    for batch in batches[:3]:
        stored(batch)
    with pytest.raises(StoredLogitsError, match="sample 3 of the stream was made from other tokens"):
        stored(batches[3])
