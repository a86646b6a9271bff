"""Fine-tuning under DeepSpeed ZeRO, through the `Trainer`: its config, its bf16, and the whole model afterwards."""

import functools
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparse_pretrain.files import read_json
from sparse_pretrain.finetune.partitions import is_sharded
from sparse_pretrain.training.deepspeed_config import shipped_config

FORWARD = "forward"
USE_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"


def zero_config(stage: int) -> dict[str, Any]:
    """Return the DeepSpeed config of a stage; the `Trainer` fills in what its own settings say.

    Weights are fp32 at every stage, as under DDP: bf16 is autocast of the forward pass (`forward_in_bf16`).
    """
    from sparse_pretrain.training.engine import compile_nothing

    compile_nothing()
    config: dict[str, Any] = read_json(shipped_config(stage, "fp32"))
    if stage == 3:
        # Between epochs, where the run could be interrupted; the model of the end is `make_whole`'s.
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return config | {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def forward_in_bf16(model: PreTrainedModel) -> None:
    """Autocast a model's forward pass, in the way and the place of what the `Trainer` does without DeepSpeed."""
    plain = model.forward

    @functools.wraps(plain)
    def forward(*inputs: Any, **named: Any) -> Any:
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            return plain(*inputs, **named)

    model.__dict__[FORWARD] = forward


def make_whole(model: PreTrainedModel, engine: Any) -> None:
    """Give a model its weights back, whole and on every rank, and take DeepSpeed off it (collective)."""
    import deepspeed

    whole: dict[nn.Parameter, Tensor] = {}
    for parameter in model.parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_sharded(parameter)):
            whole[parameter] = parameter.detach().clone()
    engine.destroy()
    # Weights that are tied stay one.
    plain = {old: nn.Parameter(weight, old.requires_grad) for old, weight in whole.items()}
    for module in model.modules():
        own = {name: None if old is None else plain[old] for name, old in module._parameters.items()}
        # Not into DeepSpeed's own kind of dictionary.
        module._parameters = own
    model.__dict__.pop(FORWARD, None)


def forget_zero() -> None:
    """Let the next run of this process be without DeepSpeed, and its models be loaded whole.

    transformers shards what it loads as long as it knows of a ZeRO-3 config; accelerate trains under DeepSpeed as long
    as a variable says so, which the `Trainer` sets.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    os.environ.pop(USE_DEEPSPEED, None)
