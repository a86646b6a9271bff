"""Batches: the same samples on any number of ranks, one integer of state."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.batch import Batch
from sparse_pretrain.data.loader import Slice, TrainingLoader, evaluation_batches
from sparse_pretrain.data.masking import IGNORED, TokenTable
from sparse_pretrain.data.order import epochs_and_samples
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


@pytest.mark.parametrize(
    ("world_size", "micro_size"), [(1, 4), (2, 2), (3, 4), (4, 3), (12, 1), (5, 2), (7, 1)]
)
def test_ranks_together_see_the_global_batch(folder: Path, world_size: int, micro_size: int) -> None:
    whole = loader(folder, Slice(12, 12, 0, 1))
    ranks = [loader(folder, Slice(12, micro_size, rank, world_size)) for rank in range(world_size)]
    for _ in range(20):
        expected = whole.next_step()
        found = [batch for rank in ranks for batch in rank.next_step()]
        assert contents(found) == contents(expected)
        for field in ("predicted", "real", "sequences"):
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


def rows_of(part: Slice) -> list[list[int]]:
    """Places in the global batch of each micro-batch of a rank."""
    mine = list(range(part.rank, part.global_size, part.world_size))
    return [mine[cut] for cut in part.cuts()]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 20))
def test_any_number_of_ranks_shares_any_batch(global_size: int, micro_size: int, world_size: int) -> None:
    """Every row once, no pass above the limit, as many passes on every rank and no more than needed."""
    assume(world_size <= global_size)
    parts = [Slice(global_size, micro_size, rank, world_size) for rank in range(world_size)]
    passes = [rows_of(part) for part in parts]
    everything = [row for rank in passes for rows in rank for row in rows]
    assert sorted(everything) == list(range(global_size))
    sizes = [len(rows) for rank in passes for rows in rank]
    assert max(sizes) == parts[0].largest_pass <= micro_size
    assert min(sizes) == parts[0].smallest_pass
    assert {len(rank) for rank in passes} == {parts[0].accumulation}
    assert parts[0].accumulation == max(-(-part.rows // micro_size) for part in parts)
    for rank in passes:
        assert len(rank[0]) - len(rank[-1]) <= 1
    if micro_size > 1 or global_size % world_size == 0:
        assert min(sizes) > 0


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10))
def test_a_batch_that_divides_is_cut_into_full_micro_batches(
    accumulation: int, micro_size: int, world_size: int
) -> None:
    part = Slice(accumulation * micro_size * world_size, micro_size, world_size - 1, world_size)
    starts = range(0, accumulation * micro_size, micro_size)
    assert part.cuts() == [slice(start, start + micro_size) for start in starts]


def test_fewer_rows_than_ranks_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^batch\.global_size = 2: fewer rows than 3 ranks; .* at least 3, or run on 2"
    ):
        Slice(2, 1, 0, 3)


@pytest.mark.parametrize("every", [True, False])
def test_a_pass_without_a_row_of_its_own_adds_nothing(folder: Path, every: bool) -> None:
    """4 rows one by one on 3 ranks: the second and third rank run a row again, for the collectives."""
    first, *others = (loader(folder, Slice(4, 1, rank, 3), every).batches_at(8) for rank in range(3))
    assert [batch.counts.sequences for batch in first] == [1, 1]
    for own, again in others:
        assert own.counts.sequences == 1
        assert torch.equal(own.input_ids, again.input_ids)
        assert again.counts == (0, 0, 0)
        assert len(again.positions) == len(again.labels) > 0
        assert bool((again.labels == IGNORED).all())
        assert again.next_sentence_labels is not None
        assert again.next_sentence_labels.tolist() == [IGNORED]


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


@pytest.mark.parametrize("pairs", [True, False])
def test_sequences_of_a_batch_are_those_of_its_rows(tmp_path: Path, pairs: bool) -> None:
    """Segments, positions, bounds and labels against a plain loop over the rows' text."""
    folder = tiny_prepared(tmp_path, pairs=pairs, sequences=True)
    split = PreparedSplit(folder, "train")
    batch = loader(folder, Slice(10, 10, 0, 1)).next_step()[0]
    assert batch.sequences is not None
    assert batch.stream is not None
    _, samples = epochs_and_samples(0, 10, len(split), split.manifest.fingerprint, 1)
    rows = split.gather(samples)
    width = batch.input_ids.shape[1]
    bounds, firsts, labels = [], [], []
    number = 0
    for row, length in enumerate(rows.lengths.tolist()):
        positions, types = np.zeros(width, np.int64), np.zeros(width, np.int64)
        assert rows.starts is not None
        starts = rows.starts.row(row).tolist()
        assert (rows.tokens[row, starts] == 2).all(), "a sequence begins with [CLS]"
        for start, end in pairwise([*starts, length]):
            positions[start:end] = np.arange(end - start)
            bounds.append(row * width + start)
            firsts.append(row * width + start)
            if rows.second_start is not None and rows.random_next is not None:
                assert rows.tokens[row, rows.second_start[number] - 1] == 3, "after a [SEP]"
                types[rows.second_start[number] : end] = 1
                labels.append(rows.random_next[number])
            number += 1
        if length < width:
            bounds.append(row * width + length)
        assert batch.sequences.position_ids[row].tolist() == positions.tolist()
        if batch.token_type_ids is not None:
            assert batch.token_type_ids[row].tolist() == types.tolist()
    assert (batch.token_type_ids is not None) == pairs
    assert batch.sequences.bounds.tolist() == [*bounds, 10 * width]
    assert batch.sequences.firsts.tolist() == firsts
    assert batch.counts.sequences == number
    assert batch.sequences.longest == int(np.diff([*bounds, 10 * width]).max())
    if pairs:
        assert batch.next_sentence_labels is not None
        assert batch.next_sentence_labels.tolist() == labels


def test_repeated_rows_of_an_evaluation_have_no_relations_either(tmp_path: Path) -> None:
    folder = tiny_prepared(tmp_path, sequences=True)
    split = PreparedSplit(folder, "validation")
    table = token_table(folder, split)
    batches = evaluation_batches(split, 5, Slice(4, 4, 1, 2), MaskingSection(), table, 1)
    (last,) = batches
    assert last.next_sentence_labels is not None
    counted = int((last.next_sentence_labels != IGNORED).sum())
    expected = split.gather(np.array([1, 3])).sequences.sum()
    assert counted == expected < len(last.next_sentence_labels)
