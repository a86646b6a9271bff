"""Small models for the tests: configs of every family, a tokenizer of RoBERTa's kind, sparse folders."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, RobertaTokenizer

from sparse_pretrain.models.prunable import prunable_weights
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from tests.tiny import VOCABULARY, WORDS, tiny_tokenizer

BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 37}
SIZES: dict[str, dict[str, Any]] = {
    "bert": BERT_SIZES,
    "roberta": BERT_SIZES,
    "albert": BERT_SIZES | {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37},
}


def tiny_config(model_type: str = "bert", **changes: Any) -> Any:
    """The config of a two-layer model with the tiny tokenizer's vocabulary; `changes` replace values."""
    values = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "pad_token_id": 0}
    return AutoConfig.for_model(model_type, **(values | SIZES[model_type] | changes))


def roberta_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with RoBERTa's special tokens: padding is 1, no segments, a space belongs to its word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Twice, and with and without a space: every word becomes a token both ways.
    tokenizer.train_from_iterator(2 * [*WORDS, *(f" {word}" for word in WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    found: PreTrainedTokenizerBase = RobertaTokenizer(tokenizer_object=tokenizer)
    return found


def roberta_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> Any:
    """The config of a tiny model that belongs to `roberta_tokenizer`: positions start behind the padding's number."""
    own = {"vocab_size": len(tokenizer), "pad_token_id": 1, "type_vocab_size": 1}
    return tiny_config("roberta", max_position_embeddings=66, **own, **changes)


def save_sparse(
    model: PreTrainedModel,
    masks: MaskSet,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    mask_file: bool = True,
) -> Path:
    """Prune a model by masks and save it with a tokenizer (the tiny one) and, if wanted, its mask file."""
    with torch.no_grad():
        for name, weight in prunable_weights(model).items():
            weight.masked_fill_(~masks[name], 0.0)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    if mask_file:
        masks.save(folder / MASK_FILE)
    return folder
