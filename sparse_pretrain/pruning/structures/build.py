"""From the recipe's section to the structure it means."""

from collections.abc import Sequence

from sparse_pretrain.config.pruning import (
    BlockStructure,
    CoupledStructure,
    ElementStructure,
    LineStructure,
    NofMStructure,
    StructureSection,
)
from sparse_pretrain.pruning.structure import Structure
from sparse_pretrain.pruning.structures.block import Blocks
from sparse_pretrain.pruning.structures.coupled import Coupled, CoupledSet
from sparse_pretrain.pruning.structures.element import Element
from sparse_pretrain.pruning.structures.lines import Lines
from sparse_pretrain.pruning.structures.n_of_m import NofM


def build_structure(section: StructureSection, coupled: Sequence[CoupledSet] = ()) -> Structure:
    """Build the structure of a recipe.

    Args:
        section: `pruning.structure`.
        coupled: what `models.coupled.coupled_sets` found; needed by `kind: coupled` alone.
    """
    match section:
        case BlockStructure():
            return Blocks(section.rows, section.columns, section.pool)
        case NofMStructure():
            return NofM(section.keep, section.of)
        case LineStructure():
            return Lines(section.kind, section.pool)
        case CoupledStructure():
            return Coupled(coupled, section.pool)
        case ElementStructure():
            return Element()
