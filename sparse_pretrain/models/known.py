"""Architectures of the paper's and the demo's models, so that planning a run needs no network."""

from typing import Any

KNOWN_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {"model_type": "bert", "vocab_size": 30522},
    "google-bert/bert-large-uncased": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "nreimers/MiniLM-L6-H384-uncased": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "distilbert/distilbert-base-uncased": {"model_type": "distilbert", "vocab_size": 30522},
    "FacebookAI/roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
}
