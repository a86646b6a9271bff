"""The lock on two ranks: DDP and ZeRO 1, 2, 3, in somebody's own Trainer and in an accelerate loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from sparse_pretrain.checkpoint.release import release
from sparse_pretrain.finetune.mask_lock import MaskLock, nonzero_outside
from sparse_pretrain.pruning.masks import MASK_FILE, MaskSet
from sparse_pretrain.training.engine import compile_nothing
from sparse_pretrain.training.world import World
from tests.distributed import run_distributed
from tests.finetune.models import tiny_contents

EXAMPLES = [
    {"input_ids": [2, 5 + number % 40, 6 + number % 7, 3], "labels": number % 2} for number in range(32)
]
# stage, precision; stage 0 is DDP. A threshold of 2,000 leaves small parameters whole beside their shards.
MODES = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16"), (3, "fp32")]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    contents = tiny_contents(tmp_path / "checkpoint-model", next_sentence=True)
    return release(contents, tmp_path / "out", Console(quiet=True))


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed config as people write them for the Trainer."""
    compile_nothing()
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 2000,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "zero_allow_untested_optimizer": True,
    }


def train(world: World, folder: Path, mode: tuple[int, str], has_file: bool) -> dict[str, Any]:
    stage, precision = mode
    arguments = TrainingArguments(
        output_dir=str(folder / "run"),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        bf16=precision == "bf16",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        optim="adamw_torch",
        deepspeed=zero(stage) if stage else None,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    masks = MaskSet.load(folder / "reference.safetensors")
    # A weight that is not zero at the start, in the working copy and so in DeepSpeed's master.
    first = next(iter(masks))
    if stage < 3 and has_file:
        with torch.no_grad():
            model.get_parameter(first)[~masks[first]] = 0.5
    lock = MaskLock.from_source(model, folder)
    trainer = Trainer(model=model, args=arguments, train_dataset=EXAMPLES, callbacks=[lock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(str(folder / f"saved-{stage}"))
    return {
        "master": master_outside(model, lock.masks) if stage else 0,
        "digest": lock.masks.digest(),
        "outside": sum(nonzero_outside(model, lock.masks).values()),
        "engine": type(trainer.model_wrapped).__name__,
    }


def master_outside(model: Any, masks: MaskSet) -> int:
    from deepspeed.utils import safe_get_full_fp32_param

    masters = {name: safe_get_full_fp32_param(model.get_parameter(name)) for name in masks}
    return sum(int(masters[name][~mask].count_nonzero()) for name, mask in masks.items())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"zero{mode[0]}-{mode[1]}")
def test_no_weight_outside_the_mask_on_two_ranks(mode: tuple[int, str], released: Path) -> None:
    (released / MASK_FILE).rename(released / "reference.safetensors")
    has_file = mode[0] != 3 or mode[1] == "fp32"
    if has_file:
        (released / MASK_FILE).write_bytes((released / "reference.safetensors").read_bytes())
    masks = MaskSet.load(released / "reference.safetensors")
    results = run_distributed(train, 2, released, mode, has_file)
    assert [result["master"] for result in results] == [0, 0], "nor in DeepSpeed's fp32 masters"
    assert [result["outside"] for result in results] == [0, 0]
    wanted = "DeepSpeedEngine" if mode[0] else "DistributedDataParallel"
    assert {result["engine"] for result in results} == {wanted}
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, dtype=torch.float32)
        for path in (released, released / f"saved-{mode[0]}")
    )
    kept = {name: mask for name, mask in masks.items() if name in dict(after.named_parameters())}
    assert results[0]["digest"] == results[1]["digest"] == MaskSet(kept).digest()
    assert sum(nonzero_outside(after, MaskSet(kept)).values()) == 0
    for name, mask in kept.items():
        moved = after.get_parameter(name) != before.get_parameter(name)
        assert moved[mask].float().mean() > 0.9, f"{name}: the weights that are kept must train"


def loop(world: World, folder: Path, stage: int) -> int:
    """An accelerate loop of three lines more."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin

    torch.manual_seed(0)
    config = zero(stage) | {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
    }
    accelerator = Accelerator(
        cpu=True, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config) if stage else None
    )
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    lock = MaskLock.from_source(model, folder)
    model, optimizer = accelerator.prepare(model, optimizer)
    lock.lock(model)
    for step in range(6):
        ids = torch.tensor([[2, 5 + step, 6 + world.rank, 3]] * 4)
        accelerator.backward(model(input_ids=ids, labels=torch.tensor([0, 1, 0, 1])).loss)
        optimizer.step()
        lock.apply()
        optimizer.zero_grad()
    lock.prove(model)
    return sum(nonzero_outside(model, lock.masks).values())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_an_accelerate_loop(stage: int, released: Path) -> None:
    assert run_distributed(loop, 2, released, stage) == [0, 0]
