"""Finds the attention heads and feed-forward channels of a Hugging Face encoder by its weights' names."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from sparse_pretrain.errors import UserError
from sparse_pretrain.pruning.structures.coupled import CoupledSet, Member

Kind = Literal["heads", "channels"]


@dataclass(frozen=True)
class Naming:
    """How one family of models calls the weights of a layer that work together.

    Attributes:
        rows: modules whose rows belong to the groups; the first one finds the layer.
        columns: the module whose columns do.
        optional: more modules whose rows do, in layers that have them.
    """

    rows: tuple[str, ...]
    columns: str
    optional: tuple[str, ...] = ()


NAMINGS: dict[Kind, tuple[Naming, ...]] = {
    "heads": (
        # BERT, RoBERTa, ELECTRA and their descendants.
        Naming(
            ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense"
        ),
        # DeBERTa-v2 and v3, whose positions may have projections of their own, cut into the same heads.
        Naming(
            ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
            "attention.output.dense",
            ("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        ),
        # DistilBERT.
        Naming(("attention.q_lin", "attention.k_lin", "attention.v_lin"), "attention.out_lin"),
        # ALBERT.
        Naming(("attention.query", "attention.key", "attention.value"), "attention.dense"),
    ),
    "channels": (
        Naming(("intermediate.dense",), "output.dense"),
        Naming(("ffn.lin1",), "ffn.lin2"),
        Naming(("ffn",), "ffn_output"),
    ),
}
WORDS: dict[Kind, str] = {"heads": "attention heads", "channels": "feed-forward channels"}
KEY = "pruning.structure.kind = coupled"


def coupled_sets(
    model: PreTrainedModel, prunable: Collection[str], of: Sequence[Kind] = ("heads", "channels")
) -> list[CoupledSet]:
    """Return the sets of a model whose weights are all prunable, in the model's order.

    Layers of which nothing is prunable are left out, and so is every weight that belongs to no head or
    channel (the pooler): it stays dense.

    Args:
        model: BERT, RoBERTa, DistilBERT, ALBERT, DeBERTa-v2, ELECTRA, or one that names its weights alike;
            whole or on the meta device, not yet partitioned.
        prunable: names of the weights that may be pruned.
        of: which groups.

    Raises:
        UserError: none were found, or only part of a set is prunable.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    allowed = set(prunable)
    found: list[CoupledSet] = []
    for kind in dict.fromkeys(of):
        inside = _sets(model, shapes, kind)
        if not inside:
            raise UserError(
                f"{KEY}: no {WORDS[kind]} found in a model of type {model.config.model_type}; "
                f"their weights are looked for under names like {NAMINGS[kind][0].rows[0]}"
            )
        chosen = [coupled for coupled in inside if _is_prunable(coupled, allowed)]
        if not chosen:
            raise UserError(
                f"{KEY}: {WORDS[kind]} exist, but pruning.include and pruning.exclude leave none prunable; "
                f"change them, or leave {kind} out of pruning.structure.of"
            )
        found.extend(chosen)
    place = {name: index for index, name in enumerate(shapes)}
    return sorted(found, key=lambda coupled: place[coupled.members[0].weight])


def _sets(model: PreTrainedModel, shapes: dict[str, torch.Size], kind: Kind) -> list[CoupledSet]:
    """Return every set of one kind that the model has."""
    sets = []
    for naming in NAMINGS[kind]:
        ending = f".{naming.rows[0]}.weight"
        for name in shapes:
            layer = name.removesuffix(ending)
            members = _members(layer, naming, shapes) if layer != name else ()
            if members:
                groups = model.config.num_attention_heads if kind == "heads" else shapes[name][0]
                sets.append(CoupledSet(f"{layer}.{kind}", groups, members))
    return sets


def _members(layer: str, naming: Naming, shapes: dict[str, torch.Size]) -> tuple[Member, ...]:
    """Return a layer's members in the model's order; none when a weight is missing."""
    rows = [f"{layer}.{module}.weight" for module in naming.rows]
    columns = f"{layer}.{naming.columns}.weight"
    if any(name not in shapes for name in (*rows, columns)):
        return ()
    more = [name for module in naming.optional if (name := f"{layer}.{module}.weight") in shapes]
    axes = {**dict.fromkeys((*rows, *more), 0), columns: 1}
    return tuple(Member(name, axes[name]) for name in shapes if name in axes)


def _is_prunable(coupled: CoupledSet, allowed: set[str]) -> bool:
    """Say whether all weights of a set may be pruned; refuse a set of which only some may."""
    names = [member.weight for member in coupled.members]
    dense = [name for name in names if name not in allowed]
    if dense and len(dense) < len(names):
        free = next(name for name in names if name in allowed)
        raise UserError(
            f"{KEY}: {coupled.name} is pruned in all of its weights or in none, but {dense[0]} is not prunable "
            f"and {free} is; change pruning.include or pruning.exclude"
        )
    return not dense
