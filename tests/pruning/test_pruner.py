"""The driver alone, over weights that sit in a dictionary."""

import torch
from torch import Tensor

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.masks import MaskSet
from sparse_pretrain.pruning.pruner import Pruner


class Weights:
    """Master and working copies in memory."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.master = {"w": torch.randn(10, 10)}
        self.working = {"w": self.master["w"].clone()}

    def full_master(self, name: str) -> Tensor:
        return self.master[name]

    def mask_working_copies(self, masks: MaskSet) -> None:
        self.working = {name: self.master[name] * mask for name, mask in masks.items()}

    def zero_pruned(self, masks: MaskSet) -> None:
        self.master = {name: self.master[name] * mask for name, mask in masks.items()}

    def agree(self, digest: str) -> bool:
        return True


def pruner(weights: Weights, **changes: object) -> Pruner:
    values = {"target_sparsity": 0.8, "ramp_end": 4, "end": 6, "frequency": 2} | changes
    section = PruningSection.model_validate(values)
    return Pruner(section, MaskSet.dense({"w": torch.Size([10, 10])}), weights)


def test_updates_come_when_the_schedule_says_and_freeze_at_the_last() -> None:
    weights = Weights()
    driver = pruner(weights)
    updates = {step: driver.after_step(step) for step in range(12)}
    assert [step for step, update in updates.items() if update is not None] == [0, 2, 4, 6]
    assert [update.froze for update in updates.values() if update] == [False, False, False, True]
    assert driver.sparsity == 0.8
    assert int((weights.master["w"] == 0).sum()) == 80


def test_a_pruned_weight_grows_back_while_the_ramp_runs() -> None:
    weights = Weights()
    driver = pruner(weights)
    driver.after_step(2)
    place = torch.nonzero(~driver.masks["w"])[0]
    weights.master["w"][tuple(place)] = 100.0
    update = driver.after_step(4)
    assert update is not None
    assert update.flips["w"].regrown == 1
    assert bool(driver.masks["w"][tuple(place)])


def test_without_regrowth_a_pruned_weight_is_gone_at_once() -> None:
    weights = Weights()
    driver = pruner(weights, regrowth=False)
    driver.after_step(2)
    pruned = ~driver.masks["w"]
    assert not weights.master["w"][pruned].any()
    driver.after_step(4)
    assert not driver.masks["w"][pruned].any()


def test_masks_and_freeze_survive_a_restart() -> None:
    weights = Weights()
    driver = pruner(weights)
    for step in range(7):
        driver.after_step(step)
    again = pruner(weights)
    again.load_state_dict(driver.state_dict(), driver.masks)
    assert again.frozen
    assert again.sparsity == driver.sparsity
    assert again.after_step(6) is None
