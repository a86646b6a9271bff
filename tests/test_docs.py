"""What the documents show, done."""

import re
from pathlib import Path
from typing import Any

import torch

from sparse_pretrain.config.pruning import PruningSection
from sparse_pretrain.pruning.pruner import Pruner
from sparse_pretrain.pruning.ranks import OneRank
from sparse_pretrain.pruning.scorer import Part
from sparse_pretrain.pruning.scorers.entry_point import members
from sparse_pretrain.pruning.structures.element import Element
from tests.pruning.memory_weights import MemoryWeights

ROOT = Path(__file__).resolve().parents[1]


def test_the_scorer_in_the_pruning_guide_works_and_remembers() -> None:
    """A weight whose sign changed goes first, also after a restart."""
    text = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?class StableSign.*?)```", text, flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(code, found)
    scorer = found["StableSign"](penalty=0.9)
    assert all(hasattr(scorer, name) for name in members())

    weights = MemoryWeights({"w": torch.tensor([[4.0, 5.0], [6.0, 7.0]])}, OneRank())
    section = PruningSection.model_validate(
        {"target_sparsity": 0.25, "schedule": "constant", "end": 4, "frequency": 2}
    )
    pruner = Pruner(section, {"w": torch.Size([2, 2])}, weights, Element(), scorer, 0.0)
    pruner.after_step(0)
    assert pruner.masks["w"].tolist() == [[False, True], [True, True]]
    weights.master["w"][3] = -7.0
    pruner.after_step(2)
    assert pruner.masks["w"].tolist() == [[True, True], [True, False]]
    weights.master["w"][3] = 7.0

    again = found["StableSign"](penalty=0.9)
    for kind, name, start, values in scorer.tensors():
        again.load_tensor(kind, Part(name, start, weights.master["w"]), values)
    part = weights.part("w")
    assert part is not None
    assert again.score(part).equal(scorer.score(part))
    assert float(again.score(part)[3]) < 1.0
