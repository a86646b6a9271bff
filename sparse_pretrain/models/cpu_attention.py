"""Attention on CPUs, where it costs what the passes over its [queries, keys] matrices cost: as few as there can be.

The same function as Hugging Face's eager attention: softmax(q k^T x scaling + mask), dropout, times v. The query is
scaled instead of the scores, nothing is kept twice for the backward pass, and dropout's masks are `cpu_dropout`'s.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sparse_pretrain.models.cpu_dropout import draw_seed, keep_mask

NAME = "sparse_pretrain_cpu"
# Neighbours that together have no more slots are attended in one go, under a mask: less is not worth a call.
SLOTS_WORTH_A_CALL = 128


class Block(NamedTuple):
    """Slots that attend to each other, or several runs of such slots; the same slots of one row or of several.

    Attributes:
        first: row.
        last: behind the last row.
        start: first slot.
        end: behind the last one.
        mask: [end - start, end - start], added to the scores; None where all attend to all.
    """

    first: int
    last: int
    start: int
    end: int
    mask: Tensor | None

    def of(self, values: Tensor) -> Tensor:
        """Return its part of values [rows, heads, slots, width]: [last - first, heads, end - start, width]."""
        return values[self.first : self.last, :, self.start : self.end]


def blocks_of(bounds: Tensor, length: int, dtype: torch.dtype) -> list[Block]:
    """Return the blocks that rows of several sequences are attended in.

    Args:
        bounds: see `data.batch.Sequences`.
        length: slots of a row.
        dtype: of the scores.
    """
    groups: list[list[int]] = []
    for start, end in pairwise(bounds.tolist()):
        first = groups[-1][0] if groups else 0
        if groups and start // length == first // length and end - first <= SLOTS_WORTH_A_CALL:
            groups[-1].append(end)
        else:
            groups.append([start, end])
    blocks: list[Block] = []
    for group in groups:
        row, start = divmod(group[0], length)
        block = Block(row, row + 1, start, start + group[-1] - group[0], apart(group, dtype))
        before = blocks[-1] if blocks else None
        # Neighbouring rows of one sequence each: one call does for all of them.
        if before is not None and block.mask is None and before[1:] == (row, start, block.end, None):
            blocks[-1] = before._replace(last=row + 1)
        else:
            blocks.append(block)
    return blocks


def apart(bounds: Sequence[int], dtype: torch.dtype) -> Tensor | None:
    """Return the mask that keeps runs of slots apart; None for a single run."""
    if len(bounds) == 2:
        return None
    first = bounds[0]
    mask = torch.full((bounds[-1] - first,) * 2, torch.finfo(dtype).min, dtype=dtype)
    for start, end in pairwise(bounds):
        mask[start - first : end - first, start - first : end - first] = 0
    return mask


class _BlockAttention(torch.autograd.Function):
    """Attention of blocks; outputs [rows, slots, heads, width], as the layers behind it want them."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Sequence[Block], dropout: float
    ) -> Tensor:
        rows, heads, slots, width = query.shape
        output = query.new_empty(rows, slots, heads, width)
        kept: list[Tensor] = []
        for block in blocks:
            scores = torch.matmul(block.of(query), block.of(key).transpose(-2, -1))
            if block.mask is not None:
                scores += block.mask
            shares = dropped = torch.softmax(scores, dim=-1)
            if dropout:
                dropped = shares * keep_mask(draw_seed(), shares.shape, dropout, shares.dtype)
            block.of(output.transpose(1, 2)).copy_(torch.matmul(dropped, block.of(value)))
            if any(ctx.needs_input_grad):
                kept += [shares, dropped]
        ctx.blocks = blocks
        ctx.save_for_backward(query, key, value, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        output = upstream[0].transpose(1, 2)
        of_query, of_key, of_value = (torch.empty_like(values) for values in (query, key, value))
        for block, shares, dropped in zip(ctx.blocks, kept[::2], kept[1::2], strict=True):
            block.of(of_value).copy_(torch.matmul(dropped.transpose(-2, -1), block.of(output)))
            # As in `_Attention`.
            of_scores = torch.matmul(block.of(output), block.of(value).transpose(-2, -1)).mul_(dropped)
            of_scores.addcmul_(shares, of_scores.sum(dim=-1, keepdim=True), value=-1)
            block.of(of_query).copy_(torch.matmul(of_scores, block.of(key)))
            block.of(of_key).copy_(torch.matmul(of_scores.transpose(-2, -1), block.of(query)))
        return of_query, of_key, of_value, None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        scores = torch.matmul(query, key.transpose(-2, -1))
        if mask is not None:
            scores += mask
        shares = torch.softmax(scores, dim=-1)
        del scores
        dropped = shares
        if dropout:
            dropped = shares * keep_mask(draw_seed(), shares.shape, dropout, shares.dtype)
        ctx.save_for_backward(query, key, value, shares, dropped)
        return torch.matmul(dropped, value)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, shares, dropped = ctx.saved_tensors
        (output,) = upstream
        of_value = torch.matmul(dropped.transpose(-2, -1), output)
        # With D = shares x mask, the gradient of the scores, shares x (dD x mask - sum(dD x mask x shares)), is
        # dD x D - shares x sum(dD x D): the mask itself is not needed.
        of_scores = torch.matmul(output, value.transpose(-2, -1)).mul_(dropped)
        of_scores.addcmul_(shares, of_scores.sum(dim=-1, keepdim=True), value=-1)
        of_query = torch.matmul(of_scores, key)
        of_key = torch.matmul(of_scores.transpose(-2, -1), query)
        return of_query, of_key, of_value, None, None


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    blocks: Sequence[Block] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend, by the interface that Hugging Face models call.

    Args:
        module: the layer.
        query: [rows, heads, queries, width of a head].
        key: [rows, heads, keys, width of a head].
        value: like key.
        attention_mask: added to the scores, broadcast over heads; None when every key is real.
        scaling: of the scores; none: 1 / sqrt(width of a head).
        dropout: probability, of the shares; 0 outside training.
        blocks: what attends to what, when rows hold several sequences; the mask is not looked at then.

    Returns:
        Outputs [rows, queries, heads, width of a head], and None: the shares are not returned.
    """
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if blocks is not None:
        return _BlockAttention.apply(query, key, value, blocks, dropout), None  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled():
        output = _Attention.apply(query, key, value, attention_mask, dropout)  # type: ignore[no-untyped-call]
    else:
        scores = torch.matmul(query, key.transpose(-2, -1))
        if attention_mask is not None:
            scores += attention_mask
        output = torch.matmul(torch.softmax(scores, dim=-1), value)
    return output.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make it known to Hugging Face models; return the name by which they take it."""
    AttentionInterface.register(NAME, cpu_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    return NAME
