"""Tokenizers trained on a recipe's text: loadable, the same every time, good for preparation and training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from data_prep.train_tokenizer import TokenizerRecipe, train_tokenizer
from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.masking import TokenTable, mask_tokens
from sparse_pretrain.data.shards import PreparedSplit
from sparse_pretrain.errors import UserError
from tests.data_prep.test_prepare import Preparation


def recipe(raw: Path, output: Path, **changes: object) -> TokenizerRecipe:
    return TokenizerRecipe.model_validate(
        {
            "output": output,
            "sources": {
                "dump": {"kind": "wikipedia_dump", "path": raw / "dump.xml.bz2"},
                "books": {"kind": "books", "path": raw / "books"},
            },
            "vocabulary_size": 260,
            "workers": 1,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def trained(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `wordpiece`, `unigram` and `bpe`."""
    folder = tmp_path_factory.mktemp("trained")
    for algorithm in ("wordpiece", "unigram", "bpe"):
        train_tokenizer(recipe(raw, folder / algorithm, algorithm=algorithm), Console(quiet=True))
    return folder


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram", "bpe"])
def test_auto_tokenizer_loads_it(trained: Path, algorithm: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / algorithm)
    text = "The teacher follows the river."
    tokens = tokenizer(text)["input_ids"]
    assert tokens[0] == tokenizer.cls_token_id
    assert tokens[-1] == tokenizer.sep_token_id
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens, skip_special_tokens=True).replace(" .", ".") == text.lower()
    pair = tokenizer("a", "b")["input_ids"]
    assert pair.count(tokenizer.sep_token_id) == 2
    assert 100 < len(tokenizer) <= 260
    assert len(tokenizer("the river", add_special_tokens=False)["input_ids"]) <= 8
    assert {tokenizer.pad_token_id, tokenizer.mask_token_id} <= set(range(5))


@pytest.mark.parametrize("algorithm", ["wordpiece", "unigram", "bpe"])
def test_the_same_text_gives_the_same_tokenizer(
    raw: Path, tmp_path: Path, trained: Path, algorithm: str
) -> None:
    train_tokenizer(recipe(raw, tmp_path / "again", algorithm=algorithm), Console(quiet=True))
    name = "tokenizer.json"
    assert (tmp_path / "again" / name).read_bytes() == (trained / algorithm / name).read_bytes()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "wordpiece", "unigram", "bpe"])
def test_preparation_and_ten_training_steps(
    raw: Path, tokenizers: Path, trained: Path, tmp_path: Path, family: str
) -> None:
    tokenizer = next(path for path in (tokenizers / family, trained / family) if path.is_dir())
    preparation = Preparation(raw, tokenizers, tmp_path / "out")
    manifest = preparation.run(f"tokenizer={tokenizer}", "format=packed")
    assert manifest.splits["train"].rows > 50
    split = PreparedSplit(preparation.output, "train")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=manifest.vocabulary_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64, hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loaded = AutoTokenizer.from_pretrained(preparation.output / "tokenizer")
    table = TokenTable.of(loaded, manifest.special_tokens, manifest.vocabulary_size)
    losses = []
    samples = np.arange(32)
    for _ in range(10):
        inputs, labels = mask_tokens(
            split.gather(samples).tokens, samples * 0, samples, 0, MaskingSection(), table
        )
        loss = model(input_ids=torch.from_numpy(inputs), labels=torch.from_numpy(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_mistakes(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no text left \(minimum_characters = 100000\)"):
        train_tokenizer(recipe(raw, tmp_path / "out", minimum_characters=100_000), Console(quiet=True))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_text("mine")
    with pytest.raises(UserError, match="out: exists; choose another folder"):
        train_tokenizer(recipe(raw, tmp_path / "out"), Console(quiet=True))


def test_the_command(raw: Path, tmp_path: Path) -> None:
    from sparse_pretrain.cli import app

    written = recipe(raw, tmp_path / "out").model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(json.dumps(written))
    done = CliRunner().invoke(
        app, ["tokenizer", "train", str(tmp_path / "recipe.yaml"), "vocabulary_size=200", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["vocabulary_size"] == 200
    shutil.rmtree(tmp_path / "out")
