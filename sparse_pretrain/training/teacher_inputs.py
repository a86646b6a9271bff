"""The teachers of a run, opened and checked before a process group or a file exists."""

from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from sparse_pretrain.config.model import ModelSection
from sparse_pretrain.config.recipe import TrainRecipe
from sparse_pretrain.distillation.stored_logits import read_logits_manifest
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_file, sha256_json
from sparse_pretrain.models.loading import load_config

# A folder with one of these has a tokenizer's vocabulary.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")

# Where Hugging Face keeps weights, in one file or in several.
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")


def teacher_section(source: str, recipe: TrainRecipe) -> ModelSection:
    """Return the model section that means a teacher: its own weights, no dropout, the student's attention."""
    return ModelSection(source=source, dropout=0.0, attention=student_section(recipe).attention)


def student_section(recipe: TrainRecipe) -> ModelSection:
    """Return the recipe's model; attention maps exist in the eager implementation only, so they force it.

    What is compiled takes torch's own attention where the recipe leaves it open: ours for CPUs is no graph.
    """
    section = recipe.model
    if recipe.distillation is not None and recipe.distillation.attention is not None:
        return section.model_copy(update={"attention": "eager"})
    if recipe.engine.compile and section.attention == "auto":
        return section.model_copy(update={"attention": "sdpa"})
    return section


def open_teachers(
    recipe: TrainRecipe, student: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PretrainedConfig, ...]:
    """Return the teachers' architectures, in the recipe's order; none where stored logits replace them.

    Size and architecture may be others than the student's; tokens must mean the same.

    Args:
        recipe: the run's.
        student: its architecture.
        tokenizer: of the data.

    Raises:
        UserError: a teacher cannot be read, or has another vocabulary.
    """
    section = recipe.distillation
    if section is None or section.precomputed is not None:
        return ()
    configs = []
    for source in section.teachers:
        config = load_config(teacher_section(source, recipe), None)
        if config.vocab_size != student.vocab_size:
            raise UserError(
                f"distillation.teacher = {source!r}: its vocabulary has {config.vocab_size} tokens, the "
                f"student's {student.vocab_size}; they must be the same"
            )
        check_tokenizer(source, tokenizer)
        configs.append(config)
    return tuple(configs)


def check_tokenizer(source: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a teacher's folder whose tokenizer numbers the tokens in another way than the data's.

    A folder without a tokenizer, or a name on the hub, is not checked.
    """
    folder = Path(source)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    try:
        its = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
    except Exception as error:  # each kind of tokenizer raises its own
        shown = " ".join(str(error).split())[:200]
        raise UserError(f"distillation.teacher = {source!r}: its tokenizer is broken ({shown})") from None
    different = first_difference(its, tokenizer.get_vocab())
    if different is not None:
        raise UserError(
            f"distillation.teacher = {source!r}: its tokenizer is not the data's: {different}; prepare the data "
            "with the teacher's tokenizer, or take a teacher of the data's"
        )


def first_difference(teacher: Mapping[str, int], data: Mapping[str, int]) -> str | None:
    """Say where two vocabularies (token to id) differ first; None when they are equal."""
    if teacher == data:
        return None
    sides = [{number: token for token, number in table.items()} for table in (teacher, data)]
    number = min(key for key in sides[0].keys() | sides[1].keys() if sides[0].get(key) != sides[1].get(key))
    mine, its = (repr(side[number]) if number in side else "nothing" for side in sides)
    return f"token {number} is {mine} there, {its} in the data"


def source_identity(source: str) -> str:
    """Return the hash of a local model's architecture and weights, else its name.

    Raises:
        UserError: a folder without weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        return source
    weights = sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    if not weights:
        raise UserError(
            f"distillation.teacher = {source!r}: no {' and no '.join(WEIGHT_FILES)} in this folder"
        )
    hashed = [*weights, *folder.glob("config.json")]
    return sha256_json({path.name: sha256_file(path) for path in hashed})


def teacher_identity(recipe: TrainRecipe) -> str | None:
    """Return what a resumed run compares: the teachers' identities; None without distillation.

    Stored logits have their teacher's identity, so a run may go on with them, or without.
    """
    section = recipe.distillation
    if section is None:
        return None
    if section.precomputed is not None:
        return read_logits_manifest(section.precomputed).teacher_identity
    return " + ".join(source_identity(source) for source in section.teachers)
