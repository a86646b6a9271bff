"""Batches: the same samples on any number of ranks, one integer of state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader, evaluation_batches
from sparse_pretrain.data.masking import IGNORED, TokenTable
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.errors import UserError
from tests.tiny import tiny_prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prepared(tmp_path_factory.mktemp("data"))


def loader(folder: Path, part: Slice, every: bool = True, seed: int = 1) -> TrainingLoader:
    split = PreparedSplit(folder, "train")
    table = token_table(folder, split)
    return TrainingLoader(split, part, MaskingSection(), table, seed, every)


def token_table(folder: Path, split: PreparedSplit) -> TokenTable:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return TokenTable.of(tokenizer, split.manifest.special_tokens, split.manifest.vocabulary_size)


def contents(batches: list[Batch]) -> set[tuple[int, ...]]:
    """Rows of micro-batches without padding, as a set."""
    found = set()
    for batch in batches:
        mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
        found |= {tuple(row[real.bool()].tolist()) for row, real in zip(batch.input_ids, mask, strict=True)}
    return found


@pytest.mark.parametrize(("world_size", "micro_size"), [(1, 4), (2, 2), (3, 4), (4, 3), (12, 1)])
def test_ranks_together_see_the_global_batch(folder: Path, world_size: int, micro_size: int) -> None:
    whole = loader(folder, Slice(12, 12, 0, 1))
    ranks = [loader(folder, Slice(12, micro_size, rank, world_size)) for rank in range(world_size)]
    for _ in range(20):
        expected = whole.next_step()
        found = [batch for rank in ranks for batch in rank.next_step()]
        assert contents(found) == contents(expected)
        for field in ("predicted", "real", "rows"):
            assert sum(getattr(batch.counts, field) for batch in found) == getattr(expected[0].counts, field)


def test_state_is_a_position(folder: Path) -> None:
    part = Slice(8, 4, 0, 1)
    running = loader(folder, part)
    for _ in range(15):
        running.next_step()
    state = running.state_dict()
    assert state["samples_seen"] == 120
    resumed = loader(folder, part)
    resumed.load_state_dict(state)
    for _ in range(3):
        for mine, theirs in zip(resumed.next_step(), running.next_step(), strict=True):
            assert torch.equal(mine.input_ids, theirs.input_ids)
            assert torch.equal(mine.labels, theirs.labels)


def test_other_data_is_refused(folder: Path, tmp_path: Path) -> None:
    state = loader(folder, Slice(8, 4, 0, 1)).state_dict()
    other = loader(tiny_prepared(tmp_path / "other", seed=5), Slice(8, 4, 0, 1))
    with pytest.raises(UserError, match="fingerprint"):
        other.load_state_dict(state)


def test_batch_must_divide(folder: Path) -> None:
    with pytest.raises(UserError, match=r"global_size = 8.* 3 x 2 = 6"):
        Slice(8, 3, 0, 2)


def test_positions_and_labels_belong_together(folder: Path) -> None:
    for every in (True, False):
        for batch in loader(folder, Slice(16, 8, 0, 1), every).next_step():
            assert batch.attention_mask is not None
            real = int(batch.attention_mask.sum())
            assert len(batch.positions) == (real if every else batch.counts.predicted)
            assert int((batch.labels != IGNORED).sum()) == batch.counts.predicted
            assert batch.counts.real == real
            assert bool(batch.attention_mask.reshape(-1)[batch.positions].all())


def test_segment_types_begin_at_the_second_segment(folder: Path) -> None:
    split = PreparedSplit(folder, "train")
    rows = split.gather(np.arange(len(split)))
    assert rows.second_start is not None
    (batch,) = loader(folder, Slice(100, 100, 0, 1)).next_step()
    assert batch.token_type_ids is not None
    # The separator before the second segment belongs to the first.
    firsts = batch.token_type_ids.argmax(dim=1)
    assert bool((batch.token_type_ids.gather(1, (firsts - 1)[:, None]) == 0).all())
    separators = batch.input_ids.gather(1, (firsts - 1)[:, None])
    assert bool((separators == 3).all())


def test_evaluation_counts_every_row_once_on_any_number_of_ranks(folder: Path) -> None:
    split = PreparedSplit(folder, "validation")
    table = token_table(folder, split)

    def total(world_size: int) -> tuple[int, set[int]]:
        parts = [
            list(evaluation_batches(split, 17, Slice(6, 1, rank, world_size), MaskingSection(), table, 1))
            for rank in range(world_size)
        ]
        predicted = sum(int((batch.labels != IGNORED).sum()) for part in parts for batch in part)
        return predicted, {len(part) for part in parts}

    assert total(1)[0] == total(2)[0] == total(3)[0] > 0
    assert total(3)[1] == {6}


def test_broken_shards_are_named(tmp_path: Path) -> None:
    folder = tiny_prepared(tmp_path / "data")
    shard = folder / "train" / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"shard-00001\.arrow.*the manifest says"):
        PreparedSplit(folder, "train")
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001\.arrow.*missing"):
        PreparedSplit(folder, "train")
    with pytest.raises(UserError, match="not a prepared folder"):
        PreparedSplit(tmp_path / "nowhere", "train")
