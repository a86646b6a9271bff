"""Tokenizers of three families, what they lack, and encoding without loss."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_prep.sentences import split_sentences
from data_prep.tokenizer import Template, load_tokenizer
from data_prep.tokens import Encoder, token_type
from sparse_pretrain.errors import UserError
from tests.data_prep.corpus import ARTICLE_TEXT, prose

FAMILIES = ["bert", "distilbert", "roberta"]


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_berts_template(tokenizers: Path, family: str) -> None:
    loaded = load_tokenizer(str(tokenizers / family))
    special = loaded.special
    assert loaded.single == Template((special.cls,), (), (special.sep,))
    assert loaded.pair == Template((special.cls,), (special.sep,), (special.sep,))
    assert set(special.never_masked) >= {special.pad, special.cls, special.sep, special.mask}


def test_robertas_template_has_two_separators(tokenizers: Path) -> None:
    loaded = load_tokenizer(str(tokenizers / "roberta"))
    assert loaded.pair.middle == (loaded.special.sep, loaded.special.sep)
    assert loaded.pair.size == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_sentences_encode_as_the_whole_text_does(tokenizers: Path, family: str) -> None:
    loaded = load_tokenizer(str(tokenizers / family))
    texts = [prose(3, 10), prose(4, 1), ARTICLE_TEXT.replace("\n", " ")]
    encoder = Encoder(loaded.definition, loaded.vocabulary_size)
    found = encoder.encode([split_sentences(text) for text in texts])
    plain = AutoTokenizer.from_pretrained(tokenizers / family)
    for text, (tokens, ends) in zip(texts, found, strict=True):
        assert tokens.tolist() == plain(text, add_special_tokens=False)["input_ids"]
        assert len(ends) == len(split_sentences(text))
        assert ends[-1] == len(tokens)
        assert tokens.dtype == np.uint16


@pytest.mark.parametrize(("family", "word"), [("bert", "[SEP]"), ("roberta", "</s>")])
def test_special_tokens_in_the_text_are_text(tokenizers: Path, family: str, word: str) -> None:
    """An article about BERT must not end a segment."""
    loaded = load_tokenizer(str(tokenizers / family))
    ((tokens, _),) = Encoder(loaded.definition, loaded.vocabulary_size).encode([[f"The {word} token."]])
    unknown = loaded.tokenizer.unk_token_id
    assert not set(tokens.tolist()) & (set(loaded.special.never_masked) - {unknown})


def test_sentences_without_tokens_leave_no_empty_sentence(tokenizers: Path) -> None:
    loaded = load_tokenizer(str(tokenizers / "bert"))
    ((tokens, ends), (none, no_ends)) = Encoder(loaded.definition, loaded.vocabulary_size).encode(
        [["The river.", "\u0301", "The market."], []]
    )
    assert len(ends) == 2
    assert ends[-1] == len(tokens)
    assert len(none) == len(no_ends) == 0


def test_stored_truncation_and_padding_do_not_touch_the_rows(tokenizers: Path, tmp_path: Path) -> None:
    """Folders of sentence encoders store both."""
    folder = tmp_path / "limited"
    shutil.copytree(tokenizers / "bert", folder)
    limited = Tokenizer.from_file(str(folder / "tokenizer.json"))
    limited.enable_truncation(8)
    limited.enable_padding(length=8)
    limited.save(str(folder / "tokenizer.json"))
    loaded, plain = load_tokenizer(str(folder)), load_tokenizer(str(tokenizers / "bert"))
    assert loaded.pair == plain.pair
    assert loaded.sha256 == plain.sha256
    ((tokens, _),) = Encoder(loaded.definition, loaded.vocabulary_size).encode([split_sentences(prose(1, 5))])
    assert len(tokens) > 8


def test_a_saved_tokenizer_has_the_same_hash(tokenizers: Path, tmp_path: Path) -> None:
    hashes = set()
    for family in FAMILIES:
        loaded = load_tokenizer(str(tokenizers / family))
        loaded.save(tmp_path / family)
        assert load_tokenizer(str(tmp_path / family)).sha256 == loaded.sha256
        hashes.add(loaded.sha256)
    assert len(hashes) == 2, "BERT's and DistilBERT's are one tokenizer"


@pytest.mark.parametrize("role", ["mask", "pad"])
def test_a_missing_special_token_is_named(tokenizers: Path, tmp_path: Path, role: str) -> None:
    plain = AutoTokenizer.from_pretrained(tokenizers / "bert")
    plain.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = {name: f"[{name.upper()}]" for name in ("cls", "sep", "pad", "mask", "unk") if name != role}
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
        f"{key}_token": value for key, value in tokens.items()
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"has no {role} token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_template_is_refused(tokenizers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tokenizers / "bert", folder)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    with pytest.raises(UserError, match="post_processor"):
        load_tokenizer(str(folder))


def test_unreadable_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer = \./gone: no such folder"):
        load_tokenizer("./gone")
    (tmp_path / "tokenizer.json").write_text("{broken")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match="cannot be read: ") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_shards_use_the_narrowest_type() -> None:
    assert token_type(65_536) is np.uint16
    assert token_type(65_537) is np.uint32
