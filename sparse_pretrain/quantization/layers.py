"""Linear and Embedding with int8 in the loop; `weight` and `bias` stay plain parameters under their own names."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_pretrain.quantization.rounding import (
    ACTIVATION_LEVELS,
    affine,
    fake_quantize,
    fake_quantize_weight,
    weight_scale,
)


class ActivationRange(nn.Module):
    """The range of one activation, a moving average of the batches' minimum and maximum, and rounding to it.

    Attributes:
        observing: in training mode, every batch moves the range.
        rounding: values are rounded to the range's 256 levels, once there is a range.
        seen: there is a range.
        scale: fp32 [], a buffer that no state dict has: it belongs into `quantization.json`.
        zero_point: int32 [], likewise.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, momentum: float) -> None:
        """Start without a range; `momentum` is the share of a new batch in the average, in (0, 1]."""
        super().__init__()
        self.momentum = momentum
        self.observing = self.rounding = self.seen = False
        for name in ("low", "high", "scale"):
            self.register_buffer(name, torch.zeros(()), persistent=False)
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, any shape, rounded when it is time to."""
        if self.training and self.observing:
            self.observe(values)
        if not (self.rounding and self.seen):
            return values
        return fake_quantize(values, self.scale, self.zero_point, ACTIVATION_LEVELS)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Move the range towards that of a batch; the first batch is taken as it is.

        In a process group the batch is that of all ranks together (collective), so that all have the same range.
        """
        low, high = over_ranks(*(bound.float() for bound in values.detach().aminmax()))
        share = self.momentum if self.seen else 1.0
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.seen = True
        self._derive(*affine(self.low, self.high))

    @torch.no_grad()
    def fix(self, scale: float, zero_point: int) -> None:
        """Take a range from a file, exactly."""
        self._derive(torch.tensor(scale), torch.tensor(zero_point))
        self.low.copy_((ACTIVATION_LEVELS[0] - self.zero_point) * self.scale)
        self.high.copy_((ACTIVATION_LEVELS[1] - self.zero_point) * self.scale)
        self.seen = True

    def _derive(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)


def over_ranks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest of all ranks' `low` and the largest of their `high`, both []; alone, what came in."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return low, high
    bounds = torch.stack([low, -high])
    dist.all_reduce(bounds, op=dist.ReduceOp.MIN)
    return bounds[0], -bounds[1]


class QuantizedLinear(nn.Linear):
    """A Linear whose weight, input and (where it is requantised) output are rounded.

    Attributes:
        rounding: the weight is rounded; its scale follows it in training.
    """

    def __init__(self, linear: nn.Linear, momentum: float, requantize: bool) -> None:
        """Take over the parameters of `linear`; they are the same objects."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.input_range = ActivationRange(momentum)
        self.output_range = ActivationRange(momentum) if requantize else None
        self.rounding = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the product of rounded input [..., in] and rounded weight, plus bias: [..., out]."""
        weight = self.weight
        if self.rounding:
            weight = fake_quantize_weight(weight, weight_scale(weight))
        output = F.linear(self.input_range(input), weight, self.bias)
        return output if self.output_range is None else self.output_range(output)


class QuantizedEmbedding(nn.Embedding):
    """An Embedding whose table is rounded; what comes out are its levels already, so nothing else is rounded.

    Attributes:
        rounding: the rows are rounded, by the scale of the whole table.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        """Take over the parameter of `embedding`; it is the same object."""
        super().__init__(
            embedding.num_embeddings,
            embedding.embedding_dim,
            embedding.padding_idx,
            scale_grad_by_freq=embedding.scale_grad_by_freq,
            sparse=embedding.sparse,
            device="meta",
        )
        self.weight = embedding.weight
        self.rounding = False

    def forward(self, input: Tensor) -> Tensor:
        """Return rows of the rounded table: int [...] -> [..., width]."""
        # Looked up first: rounding is element by element, and a batch needs few of the rows.
        rows = super().forward(input)
        return fake_quantize_weight(rows, weight_scale(self.weight)) if self.rounding else rows


QuantizedLayer = QuantizedLinear | QuantizedEmbedding


def ranges_of(layer: QuantizedLayer) -> list[ActivationRange]:
    """Return the ranges of a layer's input and output, as far as it has them."""
    return [part for part in layer.children() if isinstance(part, ActivationRange)]
