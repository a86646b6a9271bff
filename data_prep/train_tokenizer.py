"""A tokenizer of the user's own text: WordPiece by BERT's rules, or SentencePiece's unigram and BPE."""

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datatrove.pipeline.base import PipelineStep
from pydantic import Field, field_validator
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.clean import clean, long_enough, repair_unicode
from data_prep.engine import Engine, Job, LocalEngine
from data_prep.language import in_languages
from data_prep.progress import StageProgress, tell
from data_prep.recipe import CleaningSection, SourceSection, default_workers
from data_prep.sentences import split_sentences
from data_prep.sources.open import open_source
from data_prep.staging import locked, staging_folder
from data_prep.text_steps import Items, ReadUnit, Text, is_kept
from sparse_pretrain.config.base import Section, UserPath
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import atomic_path

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALPHABET = 1000
# Sums depend on how text is shared out among threads: a fixed number of them, whatever the machine.
SENTENCEPIECE_THREADS = 8


class TokenizerRecipe(Section):
    """From text to a tokenizer."""

    output: UserPath = Field(description="folder to make; `tokenizer: FOLDER` in other recipes")
    sources: dict[str, SourceSection | None] = Field(description="as in a recipe of `data prepare`")
    algorithm: Literal["wordpiece", "unigram", "bpe"] = Field(
        "wordpiece",
        description="wordpiece as BERT's; unigram and bpe as SentencePiece's, spaces being part of pieces",
    )
    vocabulary_size: int = Field(30_522, ge=100, le=1_000_000)
    lower_case: bool = True
    minimum_frequency: int = Field(2, ge=1, description="of a piece; unigram has none")
    sample_megabytes: int = Field(
        1_000,
        ge=1,
        description="about as much text is used, evenly spread over the sources; training holds it in memory",
    )
    minimum_characters: int = Field(100, ge=0)
    maximum_characters: int = Field(10_000_000, ge=1)
    cleaning: CleaningSection = CleaningSection()
    workers: int = Field(default_factory=default_workers, ge=1)

    @field_validator("sources")
    @classmethod
    def _has_a_source(cls, sources: dict[str, SourceSection | None]) -> dict[str, SourceSection | None]:
        if not any(sources.values()):
            raise ValueError("needs at least one source")
        return sources


class WriteSentences(PipelineStep):
    """Writes a unit's sentences, one a line."""

    type = "writer"
    name = "sentences"

    def __init__(self, folder: Path) -> None:
        """Unit n is written to `folder/n.txt`."""
        super().__init__()
        self.folder = folder

    def run(self, data: Items | None, rank: int = 0, world_size: int = 1) -> Items:
        """Write what comes; yield nothing."""
        with (
            atomic_path(self.folder / f"{rank:05d}.txt") as temporary,
            temporary.open("w", encoding="utf-8") as file,
        ):
            for item in data or ():
                if is_kept(item):
                    file.writelines(f"{sentence}\n" for sentence in split_sentences(item.text))
        yield from ()


def train_tokenizer(recipe: TokenizerRecipe, console: Console) -> dict[str, Any]:
    """Train a tokenizer and save it as a Hugging Face folder that `AutoTokenizer` loads.

    The same sources and settings give the same tokenizer.

    Returns:
        `output`, `algorithm`, `vocabulary_size` (as it came out), `megabytes` of text used.

    Raises:
        UserError: no text, or too little for the vocabulary; or `output` exists.
    """
    if recipe.output.exists() and any(recipe.output.iterdir()):
        raise UserError(f"output = {recipe.output}: exists; choose another folder")
    with locked(recipe.output), staging_folder(recipe.output) as folder:
        text = folder / "text"
        with LocalEngine(recipe.workers) as engine, StageProgress(console) as progress:
            files = write_text_files(recipe, text, engine, progress)
        size = sum(path.stat().st_size for path in files)
        if not size:
            raise UserError(f"no text left (minimum_characters = {recipe.minimum_characters})")
        tokenizer = train(recipe, files)
        shutil.rmtree(text)
        found = tokenizer.get_vocab_size()
        save(tokenizer, recipe, folder)
    megabytes = round(size / 1e6, 1)
    tell(console, f"{recipe.output}: {recipe.algorithm}, {found:,} pieces, from {megabytes:,} MB of text")
    if found < recipe.vocabulary_size:
        tell(console, f"vocabulary_size = {recipe.vocabulary_size:,}: the text gives no more than {found:,}")
    return {
        "output": str(recipe.output),
        "algorithm": recipe.algorithm,
        "vocabulary_size": found,
        "megabytes": megabytes,
    }


def write_text_files(
    recipe: TokenizerRecipe, folder: Path, engine: Engine, progress: StageProgress
) -> list[Path]:
    """Write the sample's sentences; return the files in the recipe's order."""
    sources = [open_source(section) for section in recipe.sources.values() if section is not None]
    units = [source.units() for source in sources]
    total = sum(unit.size for of_source in units for unit in of_source)
    # Every n-th unit of each source: a sample from its beginning to its end.
    stride = max(1, total // (recipe.sample_megabytes * 10**6))
    languages = frozenset(recipe.cleaning.languages)
    files = []
    for number, (source, of_source) in enumerate(zip(sources, units, strict=True)):
        chosen = of_source[::stride]
        place = folder / str(number)
        pipeline = [
            ReadUnit(source, chosen, recipe.maximum_characters),
            Text("extract", source.extract),
            *([Text("unicode", repair_unicode)] if recipe.cleaning.repair_unicode else []),
            Text("clean", clean),
            Text("length", partial(long_enough, minimum=recipe.minimum_characters)),
            *([Text("language", partial(in_languages, languages=languages))] if languages else []),
            WriteSentences(place),
        ]
        job = Job(f"read {source.kind}", pipeline, len(chosen), place)
        engine.run(job, progress.stage(source.kind, [unit.size for unit in chosen], "bytes"))
        files += [place / f"{unit:05d}.txt" for unit in range(len(chosen))]
    return files


def train(recipe: TokenizerRecipe, files: list[Path]) -> Tokenizer:
    """Return a tokenizer trained on files of a sentence a line.

    Raises:
        UserError: the text does not suffice for the vocabulary.
    """
    tokenizer = Tokenizer(model(recipe.algorithm))
    tokenizer.normalizer = normalizer(recipe)
    if recipe.algorithm == "wordpiece":
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    try:
        match recipe.algorithm:
            case "wordpiece":
                tokenizer.model = train_wordpiece(recipe, tokenizer, files)
                tokenizer.add_special_tokens(list(SPECIAL.values()))
            case "unigram":
                tokenizer.model = train_unigram(recipe, tokenizer, files)
                tokenizer.add_special_tokens(list(SPECIAL.values()))
            case "bpe":
                trainer = trainers.BpeTrainer(
                    vocab_size=recipe.vocabulary_size,
                    min_frequency=recipe.minimum_frequency,
                    limit_alphabet=ALPHABET,
                    special_tokens=list(SPECIAL.values()),
                    show_progress=False,
                )
                # From an iterator and not from the files: the lines' order is then ours.
                tokenizer.train_from_iterator(sentences(files), trainer)
    except Exception as error:
        # The libraries' own errors are bare exceptions: the text gives fewer pieces than it has characters.
        raise UserError(
            f"vocabulary_size = {recipe.vocabulary_size}: {str(error).splitlines()[0]}"
        ) from error
    cls, sep = (tokenizer.token_to_id(SPECIAL[role]) for role in ("cls_token", "sep_token"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def sentences(files: list[Path]) -> Iterator[str]:
    """Yield the lines of files."""
    for path in files:
        with path.open(encoding="utf-8") as file:
            yield from (line.rstrip("\n") for line in file)


def model(algorithm: str) -> models.Model:
    """Return an empty model."""
    match algorithm:
        case "wordpiece":
            return models.WordPiece(unk_token=SPECIAL["unk_token"])
        case "bpe":
            return models.BPE(unk_token=SPECIAL["unk_token"], fuse_unk=True)
        case _:
            return models.Unigram()


def normalizer(recipe: TokenizerRecipe) -> normalizers.Normalizer:
    """Return BERT's normalisation, or SentencePiece's (NFKC, single spaces)."""
    if recipe.algorithm == "wordpiece":
        return normalizers.BertNormalizer(lowercase=recipe.lower_case)
    lower = [normalizers.Lowercase()] if recipe.lower_case else []
    return normalizers.Sequence([normalizers.NFKC(), *lower, normalizers.Replace(Regex(" {2,}"), " ")])


def train_wordpiece(recipe: TokenizerRecipe, tokenizer: Tokenizer, files: list[Path]) -> models.WordPiece:
    """Return a WordPiece model.

    The library numbers characters as its hash table yields them, and breaks ties between merges by these numbers, so
    that no two runs agree. Characters that are given as if they were special tokens have fixed numbers.
    """
    counts: Counter[str] = Counter()
    for line in sentences(files):
        counts.update(tokenizer.normalizer.normalize_str(line))
    common = sorted(char for char, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:ALPHABET])
    characters = [char for char in common if not char.isspace()]
    fixed = [*SPECIAL.values(), *characters, *(f"##{char}" for char in characters)]
    trained = Tokenizer(model("wordpiece"))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trained.train_from_iterator(
        sentences(files),
        trainers.WordPieceTrainer(
            vocab_size=recipe.vocabulary_size,
            min_frequency=recipe.minimum_frequency,
            limit_alphabet=ALPHABET,
            continuing_subword_prefix="##",
            special_tokens=fixed,
            show_progress=False,
        ),
    )
    pieces = sorted(trained.get_vocab().items(), key=lambda one: one[1])
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces[: recipe.vocabulary_size])}
    return models.WordPiece(vocabulary, unk_token=SPECIAL["unk_token"])


def train_unigram(recipe: TokenizerRecipe, tokenizer: Tokenizer, files: list[Path]) -> models.Unigram:
    """Return a unigram model, trained by SentencePiece itself: the `tokenizers` trainer is not deterministic."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(tokenizer.normalizer.normalize_str(line) for line in sentences(files)),
        model_writer=written,
        model_type="unigram",
        vocab_size=recipe.vocabulary_size - len(SPECIAL) + 1,  # it counts its own unknown piece
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        num_threads=SENTENCEPIECE_THREADS,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(trained.id_to_piece(number), trained.get_score(number)) for number in range(1, len(trained))]
    specials = list(SPECIAL.values())
    vocabulary = [*((special, 0.0) for special in specials), *pieces]
    return models.Unigram(vocabulary, unk_id=specials.index(SPECIAL["unk_token"]))


def save(tokenizer: Tokenizer, recipe: TokenizerRecipe, folder: Path) -> None:
    """Write the Hugging Face folder."""
    from transformers import (
        BertTokenizer,
        PreTrainedTokenizerFast,
    )  # seconds to import: when all has worked

    if recipe.algorithm == "wordpiece":
        saved: Any = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=recipe.lower_case)
    else:
        saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    saved.save_pretrained(folder)
