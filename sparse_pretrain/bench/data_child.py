"""The measurements of `bench data`: `python -m sparse_pretrain.bench.data_child TOKENIZER`; see `data_process`."""

import json
import os
import resource
import sys
import time
from functools import partial
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from data_prep.clean import clean
from data_prep.pairs import Foreign, pairs_of
from data_prep.prepare import prepare
from data_prep.recipe import PairsSection, PrepareRecipe
from data_prep.sentences import split_sentences, splitter
from data_prep.tokenizer import LoadedTokenizer, load_tokenizer
from data_prep.tokens import Encoder
from sparse_pretrain.files import read_json, write_json

# What the map over rows keeps of a document in the column that pairs are made of.
PAIR_DOCUMENTS = 1000


def measure_prepare(arguments: dict[str, Any]) -> dict[str, Any]:
    """Prepare a .jsonl file as this project does; seconds, and the largest process's memory."""
    tight = {"rows_per_shard": 4096, "pairs": {"window_tokens": 250_000}} if arguments.get("small") else {}
    recipe = PrepareRecipe.model_validate(
        {
            "output": arguments["output"],
            "work": arguments["work"],
            "sources": {"text": {"kind": "jsonl", "path": arguments["text"]}},
            "tokenizer": arguments["tokenizer"],
            "format": arguments.get("format", "pairs"),
            "packed": {"method": "best_fit"},
            "sequence_length": arguments["length"],
            "workers": arguments["workers"],
            **tight,
        }
    )
    began = time.perf_counter()
    prepare(recipe, Console(quiet=True))
    seconds = time.perf_counter() - began
    end_workers()
    # This process takes part where there is one task only.
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "worker_bytes": max(used) * 1024}


def end_workers() -> None:
    """Wait for the process that the workers are forks of: until then the system does not count them as ours."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def measure_map(arguments: dict[str, Any]) -> dict[str, Any]:
    """Prepare it by a map over rows with as many processes: split, tokenize, pair, pad, save."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(arguments["tokenizer"])
    began = time.perf_counter()
    cache = str(Path(arguments["output"]) / "cache")
    rows: Any = datasets.load_dataset("json", data_files=arguments["text"], split="train", cache_dir=cache)
    workers = arguments["workers"]
    rows = rows.map(split_row, num_proc=workers, remove_columns=["text"])
    rows = rows.map(
        partial(tokenize_row, tokenizer=tokenizer.tokenizer), num_proc=workers, remove_columns=["sentences"]
    )
    # Random second segments come from the batch's other documents, so that this step cannot go row by row.
    rows = rows.map(
        partial(pair_rows, tokenizer=tokenizer, length=arguments["length"]),
        batched=True, batch_size=PAIR_DOCUMENTS, num_proc=workers, remove_columns=["tokens"],
    )  # fmt: skip
    rows = rows.map(partial(pad_row, length=arguments["length"], pad=tokenizer.special.pad), num_proc=workers)
    rows.save_to_disk(str(Path(arguments["output"]) / "rows"), num_proc=workers)
    return {"seconds": time.perf_counter() - began}


def split_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's sentences, by the splitter's library itself."""
    tokenize = splitter().tokenize
    found = [sentence.strip() for line in clean(row["text"]).splitlines() for sentence in tokenize(line)]
    return {"sentences": [sentence for sentence in found if sentence]}


def tokenize_row(row: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return the ids of each sentence."""
    sentences = row["sentences"]
    return {"tokens": tokenizer(sentences, add_special_tokens=False)["input_ids"] if sentences else []}


def pair_rows(batch: dict[str, Any], tokenizer: LoadedTokenizer, length: int) -> dict[str, Any]:
    """Return the segment pairs of a batch of documents, by the rules that our preparation follows too."""
    import numpy as np

    from data_prep.documents import Document

    documents = []
    for number, sentences in enumerate(batch["tokens"]):
        ids = [token for sentence in sentences for token in sentence]
        ends = np.cumsum([len(sentence) for sentence in sentences if sentence], dtype=np.int64)
        if ids:
            documents.append(Document(number, 0, np.array(ids, np.uint16), ends))
    template = tokenizer.pair
    found: dict[str, list[Any]] = {"input_ids": [], "second_start": [], "random_next": []}
    for position, document in enumerate(documents):
        draw = Random(position)  # noqa: S311 - no secret
        foreign = Foreign(documents, position, draw) if len(documents) > 1 else None
        for pair in pairs_of(document, foreign, length - template.size, PairsSection(), draw):
            first = [*template.prefix, *pair.first.tolist(), *template.middle]
            found["input_ids"].append([*first, *pair.second.tolist(), *template.suffix])
            found["second_start"].append(len(first))
            found["random_next"].append(int(pair.random_next))
    return found


def pad_row(row: dict[str, Any], length: int, pad: int) -> dict[str, Any]:
    """Return the row padded, with its mask and segment numbers."""
    ids = row["input_ids"]
    padding = length - len(ids)
    return {
        "input_ids": ids + [pad] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "token_type_ids": [0] * row["second_start"] + [1] * (len(ids) - row["second_start"]) + [0] * padding,
    }


def measure_tokenize(arguments: dict[str, Any]) -> dict[str, Any]:
    """Encode the same text with our stage and with the library's `encode_batch` of whole documents, on one core.

    With `parts` and `part`: every so-manieth document, which several processes then share.
    """
    from tokenizers import Tokenizer

    tokenizer = load_tokenizer(arguments["tokenizer"])
    with Path(arguments["text"]).open(encoding="utf-8") as file:
        mine = islice(file, arguments.get("part", 0), None, arguments.get("parts", 1))
        texts = [clean(json.loads(line)["text"]) for line in mine]
    sentences = [split_sentences(text) for text in texts]
    seconds = {"our": 0.0, "raw": 0.0}
    encoder = Encoder(tokenizer.definition, tokenizer.vocabulary_size)
    library = Tokenizer.from_str(tokenizer.definition)
    for start in range(0, len(texts), 512):
        part = slice(start, start + 512)
        began = time.process_time()
        encoder.encode(sentences[part])
        middle = time.process_time()
        library.encode_batch(texts[part], add_special_tokens=False)
        seconds["our"] += middle - began
        seconds["raw"] += time.process_time() - middle
    return {f"{name}_seconds": spent for name, spent in seconds.items()}


def main() -> None:
    """Load a tokenizer, and with it what all measurements import, then do what stdin asks for.

    A line names measurements, each by its kind and by how its files' names begin. The answer on stdout is a line too:
    the kinds that failed.
    """
    load_tokenizer(sys.argv[1])
    for line in sys.stdin:
        children = {fork(kind, place): kind for kind, place in json.loads(line)}
        failed = [kind for child, kind in children.items() if os.waitpid(child, 0)[1]]
        print(json.dumps(failed), flush=True)


def fork(kind: str, place: str) -> int:
    """Measure in a fork of this process; return its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        measures = {"prepare": measure_prepare, "map": measure_map, "tokenize": measure_tokenize}
        result = measures[kind](read_json(Path(f"{place}.arguments.json")))
        write_json(Path(f"{place}.result.json"), result | {"core_seconds": core_seconds()})
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def core_seconds() -> float:
    """Return what this process and its ended children have used of the cores."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
