"""The model of a folder as the class that its config names, task head included, ready for inference on the CPU."""

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from sparse_pretrain.checkpoint.folder import model_path, one_line, read_config
from sparse_pretrain.checkpoint.quiet import quiet_libraries
from sparse_pretrain.errors import UserError
from sparse_pretrain.export.bitmask import BITMASK_FILE, load_bitmask
from sparse_pretrain.export.two_four import TWO_FOUR_FILE, load_two_four

PACKED = {BITMASK_FILE: load_bitmask, TWO_FOUR_FILE: load_two_four}


def load_model(source: str | Path) -> PreTrainedModel:
    """Return the model of a plain, bitmask or 2:4 folder, or of a hub name, in fp32 and evaluation mode.

    Raises:
        UserError: no model there, it does not load, or a weight is missing: a new head has nothing to export.
    """
    folder = Path(source).expanduser()
    load_packed = next((load for name, load in PACKED.items() if (folder / name).is_file()), None)
    path = str(folder) if load_packed else model_path(source)
    factory = model_class(path, read_config(path))
    options: dict[str, Any] = {"output_loading_info": True, "dtype": torch.float32}
    if load_packed:
        options |= {"config": read_config(path), "state_dict": load_packed(path)}
    try:
        with quiet_libraries():
            model, loading = factory.from_pretrained(None if load_packed else path, **options)
    except UserError:
        raise
    except Exception as error:  # broken files raise whatever their format's library has
        raise UserError(f"{source}: does not load: {one_line(error)}") from None
    # Bare encoders are saved without a pooler by some; it computes no output that is exported.
    missing = sorted(str(name) for name in loading["missing_keys"] if "pooler." not in str(name))
    if missing:
        raise UserError(
            f"{source}: {len(missing)} weights of {factory.__name__} are missing, such as {missing[0]}; "
            "fine-tune the model first, or mend `architectures` in config.json"
        )
    return model.eval()  # type: ignore[no-any-return]


def model_class(path: str, config: PretrainedConfig) -> Any:
    """Return the class that a config names.

    Raises:
        UserError: it names none, or one that transformers does not have.
    """
    names = config.architectures or []
    factory = getattr(transformers, names[0], None) if names else None
    if factory is None:
        named = f"names {names[0]!r}, which transformers does not have" if names else "names no class"
        raise UserError(
            f"{path}/config.json: architectures {named}; for example ['BertForSequenceClassification']"
        )
    return factory


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer beside a model, None when there is none that loads."""
    folder = Path(source).expanduser()
    path = str(folder) if (folder / "config.json").is_file() else model_path(source)
    try:
        with quiet_libraries():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
            return tokenizer
    except Exception:  # tokenizers raises bare Exception on broken files
        return None
