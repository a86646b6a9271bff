"""The tokenizer: loaded, checked, and the special tokens that it puts around segments."""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sparse_pretrain.data.manifest import SpecialTokens
from sparse_pretrain.errors import UserError
from sparse_pretrain.files import sha256_json

PROBE = "a"


@dataclass(frozen=True)
class Template:
    """Special tokens around one segment (`middle` is empty) or around and between two.

    BERT: `[CLS] first [SEP] second [SEP]`; RoBERTa: `<s> first </s></s> second </s>`.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of special tokens in a row."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True)
class TokenFrame:
    """What building rows needs of a tokenizer; small and picklable. See `LoadedTokenizer`."""

    vocabulary_size: int
    special: SpecialTokens
    single: Template
    pair: Template


@dataclass(frozen=True)
class LoadedTokenizer:
    """What preparation needs of a tokenizer.

    Attributes:
        tokenizer: the Hugging Face tokenizer, without truncation and padding.
        definition: the whole tokenizer as the `tokenizers` library's JSON; workers build theirs from it.
        vocabulary_size: number of ids, added tokens included.
        special: ids that masking and padding need.
        single: template of one segment.
        pair: template of two.
    """

    tokenizer: Any
    definition: str
    vocabulary_size: int
    special: SpecialTokens
    single: Template
    pair: Template

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides ids: vocabulary, rules, special tokens."""
        return sha256_json([json.loads(self.definition), self.special.model_dump()])

    @property
    def frame(self) -> TokenFrame:
        """What building rows needs of it."""
        return TokenFrame(self.vocabulary_size, self.special, self.single, self.pair)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer folder."""
        self.tokenizer.save_pretrained(folder)


def load_tokenizer(name: str) -> LoadedTokenizer:
    """Load a tokenizer from a folder or by its Hugging Face name.

    Raises:
        UserError: it cannot be read, is not a fast one, or lacks a token that pre-training needs.
    """
    tokenizer = read_tokenizer(name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(f"tokenizer = {name}: not a fast tokenizer (it has no tokenizer.json)")
    # Some folders (sentence encoders) carry the lengths that their model was used with.
    backend.no_truncation()
    backend.no_padding()
    return LoadedTokenizer(
        tokenizer=tokenizer,
        definition=backend.to_str(),
        vocabulary_size=len(tokenizer),
        special=special_tokens(name, tokenizer),
        single=find_template(name, backend, segments=1),
        pair=find_template(name, backend, segments=2),
    )


def read_tokenizer(name: str) -> Any:
    """Return what `AutoTokenizer` makes of a folder or a name."""
    folder = Path(name).expanduser()
    looks_like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if looks_like_path and not folder.is_dir():
        raise UserError(f"tokenizer = {name}: no such folder")
    from transformers import AutoTokenizer  # seconds to import: after every cheaper check

    try:
        return AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name)
    except Exception as error:
        # Files of any age and kind lie in such folders: errors of many types, and a panic of the Rust
        # library arrives as a bare Exception.
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f"tokenizer = {name}: cannot be read: {reason}") from error


def special_tokens(name: str, tokenizer: Any) -> SpecialTokens:
    """Return the special ids.

    Raises:
        UserError: one is missing.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("pad", "mask", "cls", "sep")}
    missing = [role for role, number in ids.items() if number is None]
    if missing:
        raise UserError(
            f"tokenizer = {name}: has no {' and no '.join(missing)} token; "
            "masked language modelling needs pad, mask, cls and sep"
        )
    return SpecialTokens(**ids, never_masked=sorted(set(tokenizer.all_special_ids)))


def find_template(name: str, backend: Tokenizer, segments: int) -> Template:
    """Find the special tokens that the tokenizer's own post-processor puts around its segments.

    Raises:
        UserError: it puts none, so that a model could not tell where a segment ends.
    """
    encoding = backend.encode(PROBE) if segments == 1 else backend.encode(PROBE, PROBE)
    marked = zip(encoding.sequence_ids, encoding.ids, strict=True)
    runs = [
        (sequence, tuple(number for _, number in run))
        for sequence, run in groupby(marked, lambda pair: pair[0])
    ]
    around = [run for sequence, run in runs if sequence is None]
    if [sequence for sequence, _ in runs] != [None, 0, None] + [1, None] * (segments - 1):
        raise UserError(
            f"tokenizer = {name}: its template does not set special tokens around "
            f"{'a segment' if segments == 1 else 'and between two segments'} (tokenizer.json: post_processor)"
        )
    return Template(around[0], around[1] if segments == 2 else (), around[-1])
