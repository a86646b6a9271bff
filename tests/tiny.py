"""Small real inputs for the tests: a tokenizer, prepared folders, recipes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.data.manifest import (
    Manifest,
    RowFormat,
    Shard,
    SpecialTokens,
    SplitCounts,
    write_manifest,
)
from sparse_pretrain.files import sha256_file

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"{first}{second}" for first in "bdfgklmn" for second in ("a", "e", "i", "o", "u")]
PIECES = [f"##{word}" for word in WORDS[:20]]
VOCABULARY = SPECIALS + WORDS + PIECES


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of 65 tokens."""
    table = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def tiny_prepared(
    folder: Path,
    pairs: bool = True,
    rows: int = 100,
    length: int = 32,
    seed: int = 0,
    sequences: bool = False,
) -> Path:
    """Write a prepared folder of random words, most rows shorter than `length`; with `sequences` up to 3 in a row."""
    generator = random.Random(seed)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    splits = {
        split: write_split(folder, split, count, pairs, length, generator, sequences)
        for split, count in (("train", rows), ("validation", max(8, rows // 5)))
    }
    formats: dict[tuple[bool, bool], RowFormat] = {
        (True, False): "pairs",
        (False, False): "packed",
        (True, True): "packed_pairs",
        (False, True): "packed_documents",
    }
    manifest = Manifest(
        format=formats[pairs, sequences],
        sequence_length=length,
        seed=seed,
        vocabulary_size=len(VOCABULARY),
        tokenizer_sha256="tiny",
        special_tokens=SpecialTokens(pad=0, mask=4, cls=2, sep=3, never_masked=[0, 1, 2, 3, 4]),
        sources=[],
        splits=splits,
        settings={},
        versions={},
    )
    write_manifest(folder, manifest.with_fingerprint())
    return folder


def write_split(
    folder: Path,
    split: str,
    count: int,
    pairs: bool,
    length: int,
    generator: random.Random,
    sequences: bool,
) -> SplitCounts:
    """Write one split as two shards."""
    shards, tokens = [], 0
    for number, share in enumerate((count // 2, count - count // 2)):
        data = np.zeros((share, length), dtype=np.uint16)
        lengths: list[int] = []
        firsts: list[list[int]] = []
        starts: list[list[int]] = []
        labels: list[list[int]] = []
        for row in range(share):
            size = generator.randint(length // 2, length)
            parts = generator.randint(1, 3) if sequences else 1
            ids: list[int] = []
            firsts.append([])
            starts.append([])
            labels.append([])
            for part in range(parts):
                words = generator.choices(
                    range(len(SPECIALS), len(VOCABULARY)), k=size * (part + 1) // parts - len(ids) - 3
                )
                middle = generator.randint(1, len(words) - 1)
                firsts[-1].append(len(ids))
                starts[-1].append(len(ids) + middle + 2)
                labels[-1].append(generator.randint(0, 1))
                ids += [2, *words[:middle], 3, *words[middle:], 3]
            data[row, :size] = ids
            lengths.append(size)

        def column(values: list[list[int]], kind: pa.DataType) -> pa.Array:
            return (
                pa.array(values, pa.list_(kind)) if sequences else pa.array([one for (one,) in values], kind)
            )

        columns: dict[str, Any] = {
            "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(data.reshape(-1)), length),
            "length": pa.array(lengths, pa.uint16()),
        }
        if pairs:
            columns["second_start"] = column(starts, pa.uint16())
            columns["random_next"] = column(labels, pa.uint8())
        if sequences:
            columns["sequence_start"] = column(firsts, pa.uint16())
        path = folder / split / f"shard-{number:05d}.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.table(columns)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        tokens += sum(lengths)
        shards.append(
            Shard(
                file=f"{split}/{path.name}", rows=share, bytes=path.stat().st_size, sha256=sha256_file(path)
            )
        )
    return SplitCounts(documents=count, rows=count, tokens=tokens, shards=shards)


def tiny_recipe(data: Path, output: Path, **changes: Any) -> TrainRecipe:
    """A recipe of a two-layer BERT from scratch that trains in seconds; `changes` replace sections."""
    values: dict[str, Any] = {
        "output": str(output),
        "steps": 8,
        "precision": "fp32",
        "model": {
            "config": {
                "model_type": "bert",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 37,
                "max_position_embeddings": 64,
            },
            "dropout": 0.0,
        },
        "data": {"path": str(data)},
        "batch": {"global_size": 8, "micro_size": 2},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"every": 1000},
        "evaluation": {"every": 1000, "rows": 16},
        "logging": {"every": 1, "histograms_every": 0},
    }
    return TrainRecipe.model_validate(values | changes)


def read_rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the rows of one kind of a run's metrics."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]
