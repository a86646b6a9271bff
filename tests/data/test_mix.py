"""Several prepared sets as one, by weight."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from sparse_pretrain.checkpoint.layout import resolve_checkpoint
from sparse_pretrain.config.load import load_recipe
from sparse_pretrain.config.model import DataSection, MaskingSection
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.loader import Slice, TrainingLoader
from sparse_pretrain.data.manifest import read_manifest, write_manifest
from sparse_pretrain.data.masking import TokenTable
from sparse_pretrain.data.mix import MixedSplit, open_split, samples_of, training_manifest
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.errors import UserError
from sparse_pretrain.training.plan import plan
from tests.launched import launch_tiny
from tests.tiny import read_rows, tiny_prepared


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("mix")
    return [tiny_prepared(place / str(seed), seed=seed) for seed in (1, 2)]


def mixed(folders: list[Path], first: float = 1.0, second: float = 1.0) -> MixedSplit:
    return MixedSplit(dict(zip(folders, (first, second), strict=True)), "train")


@given(
    st.lists(st.tuples(st.floats(0.05, 10), st.integers(1, 10_000)), min_size=1, max_size=5),
)
def test_an_epoch_has_the_shares_asked_for_and_every_row(sets: list[tuple[float, int]]) -> None:
    weights, sizes = [weight for weight, _ in sets], [size for _, size in sets]
    samples = samples_of(weights, sizes)
    assert (samples >= sizes).all()
    assert (samples == sizes).any(), "no longer than needed"
    shares = np.array(weights) / sum(weights)
    assert np.abs(samples - shares * samples.sum()).max() <= len(sets)


def test_a_heavier_set_is_repeated_and_none_is_left_out(folders: list[Path]) -> None:
    mix = mixed(folders, 2.5, 1.0)
    sizes = [len(PreparedSplit(folder, "train")) for folder in folders]
    sets, rows = mix.places(np.arange(len(mix)))
    found = Counter(zip(sets.tolist(), rows.tolist(), strict=True))
    assert set(found) == {(number, row) for number, size in enumerate(sizes) for row in range(size)}
    for number in range(2):
        times = {count for (one, _), count in found.items() if one == number}
        assert max(times) - min(times) <= 1
    assert np.mean(sets == 0) == pytest.approx(2.5 / 3.5, abs=0.01)
    # Any stretch is a mix.
    assert np.mean(sets[: len(sets) // 4] == 0) == pytest.approx(2.5 / 3.5, abs=0.2)


def test_rows_are_those_of_the_sets_in_the_order_asked_for(folders: list[Path]) -> None:
    mix = mixed(folders)
    samples = np.random.default_rng(0).permutation(len(mix))[:50]
    rows = mix.gather(samples)
    splits = [PreparedSplit(folder, "train") for folder in folders]
    for at, (number, row) in enumerate(zip(*mix.places(samples), strict=True)):
        expected = splits[number].gather(np.array([row]))
        for mine, theirs in zip(rows, expected, strict=True):
            assert (mine is None and theirs is None) or np.array_equal(mine[at], theirs[0])


def loader(folders: list[Path], part: Slice) -> TrainingLoader:
    mix = mixed(folders, 3.0, 1.0)
    tokenizer = AutoTokenizer.from_pretrained(folders[0] / "tokenizer")
    table = TokenTable.of(tokenizer, mix.manifest.special_tokens, mix.manifest.vocabulary_size)
    return TrainingLoader(mix, part, MaskingSection(), table, 0, True)


def test_any_number_of_ranks_and_a_resumed_run_see_the_same_batches(folders: list[Path]) -> None:
    whole = loader(folders, Slice(12, 12, 0, 1))
    for _ in range(5):
        whole.next_step()
    state = whole.state_dict()
    assert state["samples_seen"] == 60
    (expected,) = whole.next_step()
    ranks = [loader(folders, Slice(12, 4, rank, 3)) for rank in range(3)]
    for rank, one in enumerate(ranks):
        one.load_state_dict(state)
        (batch,) = one.next_step()
        length = min(batch.input_ids.shape[1], expected.input_ids.shape[1])
        assert batch.input_ids[:, :length].tolist() == expected.input_ids[rank::3, :length].tolist()


def test_other_weights_are_other_data(folders: list[Path]) -> None:
    assert mixed(folders, 1.0, 1.0).manifest.fingerprint == mixed(folders, 2.0, 2.0).manifest.fingerprint
    assert mixed(folders, 1.0, 1.0).manifest.fingerprint != mixed(folders, 2.0, 1.0).manifest.fingerprint


def test_sets_that_do_not_fit_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = tiny_prepared(tmp_path / "other")
    manifest = read_manifest(other)
    write_manifest(other, manifest.model_copy(update={"tokenizer_sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"other has tokenizer_sha256 0+, .* prepare both alike"):
        mixed([folders[0], other])
    with pytest.raises(UserError, match="a weight must be a number above 0"):
        mixed(folders, 0.0)
    with pytest.raises(UserError, match="names no folder"):
        MixedSplit({}, "train")


def test_a_recipe_names_folders_and_weights(folders: list[Path]) -> None:
    overrides = ["data.path=null", f"data.mix={{{folders[0]}: 3, {folders[1]}: 1}}"]
    recipe = load_recipe("train-tiny", overrides, TrainRecipe)
    train = open_split(recipe.data, "train")
    manifest = training_manifest(recipe.data)
    assert manifest is not None
    assert train.manifest == manifest == mixed(folders, 3.0, 1.0).manifest
    numbers = plan(recipe, world_size=2)
    assert numbers["data"] == manifest.fingerprint
    assert numbers["epochs"] == recipe.steps * recipe.batch.global_size / len(train)


def test_one_prepared_folder_is_read_as_it_is(folders: list[Path], tmp_path: Path) -> None:
    assert open_split(DataSection(path=folders[0]), "train").manifest == read_manifest(folders[0])
    assert training_manifest(DataSection(path=folders[0])) == read_manifest(folders[0])
    assert training_manifest(DataSection(mix={folders[0]: 1.0, tmp_path: 1.0})) is None


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["data.mix={data/other: 1}"], "data: path = 'data/tiny' and mix are two ways to say one thing"),
        (["data.path=null"], "data: give path, a prepared folder"),
        (
            ["data.path=null", "data.mix={data/other: -1}"],
            "data.mix.data/other = -1: should be greater than 0",
        ),
    ],
)
def test_a_recipe_that_says_it_wrongly_is_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_recipe("train-tiny", overrides, TrainRecipe)


@pytest.mark.slow
def test_ranks_train_on_a_mix_and_one_rank_goes_on_with_it(folders: list[Path], tmp_path: Path) -> None:
    def losses(output: str, ranks: int) -> list[float]:
        mix = f"data.mix={{{folders[0]}: 3, {folders[1]}: 1}}"
        run = launch_tiny(tmp_path, output, ranks, "data.path=null", mix)
        printed, _ = run.communicate(timeout=120)
        assert run.returncode == 0, printed
        return [row["loss"] for row in read_rows(tmp_path / output, "train")]

    whole = losses("whole", 2)
    assert len(whole) == 10
    # As if it had ended behind its first checkpoint, of step 5.
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(resolve_checkpoint(tmp_path / "part"))
    assert losses("part", 1) == pytest.approx(whole, abs=1e-5)


def test_rows_of_several_sequences_keep_theirs_in_a_mix(tmp_path: Path) -> None:
    folders = [tiny_prepared(tmp_path / str(seed), seed=seed, sequences=True) for seed in (1, 2)]
    mix = mixed(folders)
    samples = np.random.default_rng(0).permutation(len(mix))[:40]
    found = mix.gather(samples)
    sets, rows = mix.places(samples)
    assert found.starts is not None
    assert found.second_start is not None
    assert found.random_next is not None
    ends = np.cumsum(found.sequences)
    for at in range(len(samples)):
        alone = PreparedSplit(folders[sets[at]], "train").gather(rows[at : at + 1])
        assert alone.starts is not None
        mine = slice(ends[at] - found.sequences[at], ends[at])
        assert found.tokens[at].tolist() == alone.tokens[0].tolist()
        assert found.starts.row(at).tolist() == alone.starts.flat.tolist()
        assert np.array_equal(found.second_start[mine], alone.second_start)  # type: ignore[arg-type]
        assert np.array_equal(found.random_next[mine], alone.random_next)  # type: ignore[arg-type]
