"""What training sees of a row in its first epoch: some tokens disguised, each of them to be predicted."""

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from data_prep.tokenizer import LoadedTokenizer
from sparse_pretrain.config.model import MaskingSection
from sparse_pretrain.data.masking import IGNORED, TokenTable, mask_tokens

# That of a training recipe that names none, as is the masking: the shown positions are then the trained ones.
TRAINING_SEED = 42
STYLES = {"mask": "bold red", "random": "bold yellow", "kept": "bold green"}


def masked(
    input_ids: NDArray[Any], length: int, sample: int, table: TokenTable, tokenizer: LoadedTokenizer
) -> dict[str, Any]:
    """Return a row as the model gets it.

    Args:
        input_ids: [sequence_length], padded.
        length: real tokens.
        sample: the row's number in its split, which decides what is masked.
        table: of the vocabulary.
        tokenizer: of the rows.

    Returns:
        `text`, and for each token to predict its `position` in the row, `token`, what is `shown` instead and `how`
        (mask, random or kept), and where that is in the text: from character `start` up to `end`.
    """
    tokens = input_ids.astype(np.int64)[None]
    inputs, labels = mask_tokens(
        tokens, np.zeros(1, np.int64), np.array([sample]), TRAINING_SEED, MaskingSection(), table
    )
    shown, wanted = inputs[0, :length].tolist(), labels[0, :length].tolist()
    pieces = text_pieces(shown, tokenizer)
    starts = [0, *accumulate(map(len, pieces))]
    names = tokenizer.tokenizer.convert_ids_to_tokens
    return {
        "text": "".join(pieces),
        "predicted": [
            {
                "position": at,
                "token": names(token),
                "shown": names(shown[at]),
                "how": "mask" if shown[at] == table.mask else "kept" if shown[at] == token else "random",
                "start": starts[at + 1] - len(pieces[at].lstrip()),
                "end": starts[at + 1],
            }
            for at, token in enumerate(wanted)
            if token != IGNORED
        ],
    }


def text_pieces(tokens: list[int], tokenizer: LoadedTokenizer) -> list[str]:
    """Return the text that each token adds to that of the tokens before; together they are the whole text.

    A character made of several tokens, as byte-level vocabularies have them, belongs to the last one.
    """
    texts = [
        tokenizer.tokenizer.decode(tokens[:count], clean_up_tokenization_spaces=False)
        for count in range(1, len(tokens) + 1)
    ]
    # Half a character is not the text's yet: the tokens to come change it.
    settled = [size_of_common_start(one, following) for one, following in pairwise(texts)]
    ends = accumulate([0, *settled, len(texts[-1])], max)
    return [texts[-1][start:end] for start, end in pairwise(ends)]


def size_of_common_start(one: str, other: str) -> int:
    """Return how many characters two texts begin alike with."""
    if other.startswith(one):
        return len(one)
    different = (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(different, len(other))


def painted(seen: dict[str, Any]) -> Text:
    """Return the text with what is to be predicted coloured: masked, replaced at random, or left as it is."""
    text = Text(seen["text"])
    for one in seen["predicted"]:
        text.stylize(STYLES[one["how"]], one["start"], one["end"])
    return text


def answers(seen: dict[str, Any]) -> str:
    """Return what is shown and what is to be predicted, in words for terminals without colours."""
    return ", ".join(f"{one['shown']} = {one['token']}" for one in seen["predicted"]) or "nothing"
