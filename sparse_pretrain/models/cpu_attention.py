"""Attention on CPUs, where it costs what the passes over its [queries, keys] matrices cost: as few as there can be.

The same function as Hugging Face's eager attention: softmax(q k^T x scaling + mask), dropout, times v. The query is
scaled instead of the scores, nothing is kept twice for the backward pass, and dropout's masks are `cpu_dropout`'s.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from sparse_pretrain.models.cpu_dropout import draw_seed, keep_mask

NAME = "sparse_pretrain_cpu"


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

    Returns:
        Outputs [rows, queries, heads, width of a head], and None: the shares are not returned.
    """
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
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
