"""Timings of a step's kernels on this device, one at a time, at sizes that training has."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_pretrain.costs import counts
from sparse_pretrain.costs.clock import Stopwatch
from sparse_pretrain.costs.fit import Sample, fit
from sparse_pretrain.costs.hardware import KernelCost
from sparse_pretrain.costs.work import Work
from sparse_pretrain.distillation.losses import distillation_loss, masked_language_loss
from sparse_pretrain.models.cpu_attention import cpu_attention
from sparse_pretrain.models.cpu_dropout import CpuDropout
from sparse_pretrain.models.cpu_projection import CpuProjection

# Seconds that each shape of each kernel is repeated for, and how often at least.
SECONDS, LEAST = 0.04, 4
# Copies of every input, taken in turns: in a step, what a kernel reads is seldom still in a core's cache.
COPIES = 2
VOCABULARY = 30522
DROPOUT = 0.1
Make = Callable[[], Callable[[], object]]

LINEAR_SHAPES = (
    (1024, 256, 256),
    (1024, 256, 1024),
    (1024, 1024, 256),
    (1024, 384, 384),
    (1024, 384, 1536),
    (1024, 1536, 384),
    (1024, 768, 768),
    (512, 768, 3072),
)
PROJECTION_SHAPES = ((77, 256), (154, 384), (256, 384), (512, 256))
# Rows, heads, length, width of a head.
ATTENTION_SHAPES = ((8, 12, 128, 32), (8, 4, 128, 64), (2, 12, 512, 32), (2, 4, 512, 64))
ELEMENTWISE_SHAPES = ((1024, 256), (1024, 384), (1024, 1536), (1024, 768))
LOSS_ROWS = (64, 256)


def median_seconds(device: torch.device, variants: Sequence[Callable[[], object]]) -> float:
    """Return the median time of one of several variants of the same work, after each ran once."""
    for work in variants:
        work()
    taken: list[float] = []
    turns = cycle(variants)
    end = time.perf_counter() + SECONDS
    while len(taken) < LEAST or time.perf_counter() < end:
        work = next(turns)
        watch = Stopwatch(device)
        work()
        taken.append(watch.seconds())
    return max(1e-9, statistics.median(taken))


def measure_kernels(device: torch.device, dtype: torch.dtype, scale: int = 1) -> dict[str, KernelCost]:
    """Time every kernel of a step at several sizes and return their constants.

    Args:
        device: where.
        dtype: of weights and activations.
        scale: rows are so many times more; a GPU needs more work per kernel than a CPU core.
    """
    samples: dict[str, list[Sample]] = {}
    for work, make in candidates(device, dtype, scale):
        seconds = median_seconds(device, [make() for _ in range(COPIES)])
        samples.setdefault(work.kernel, []).append(Sample(work, seconds))
    subtract_forward(samples)
    return {kernel: fit(found) for kernel, found in samples.items()}


def subtract_forward(samples: dict[str, list[Sample]]) -> None:
    """Leave the backward pass of what was timed forward and backward."""
    for kernel in ("linear", "projection"):
        forward = [sample.seconds for sample in samples[f"{kernel} forward"]]
        both = samples[f"{kernel} backward"]
        samples[f"{kernel} backward"] = [
            Sample(work, max(1e-9, seconds - before))
            for (work, seconds), before in zip(both, forward, strict=True)
        ]


def candidates(device: torch.device, dtype: torch.dtype, scale: int) -> Iterator[tuple[Work, Make]]:
    """Yield every kernel at every size, with what makes inputs and returns the work to time."""
    width = dtype.itemsize

    def random(*shape: int, grad: bool = False) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype).requires_grad_(grad)

    for tokens, inner, outer in LINEAR_SHAPES:
        forward, backward = counts.linear("student matmuls", tokens * scale, inner, outer, width, True)
        yield forward, partial(make_linear, random, nn.Linear, (tokens * scale, inner, outer), False)
        yield backward, partial(make_linear, random, nn.Linear, (tokens * scale, inner, outer), True)
    for tokens, inner in PROJECTION_SHAPES:
        shape = counts.Shape(1, inner, inner, 1, VOCABULARY, 1, 1)
        forward, backward = counts.projection("vocabulary and losses", tokens * scale, shape, width, True)
        kind = CpuProjection if device.type == "cpu" else nn.Linear
        yield forward, partial(make_linear, random, kind, (tokens * scale, inner, VOCABULARY), False)
        yield backward, partial(make_linear, random, kind, (tokens * scale, inner, VOCABULARY), True)
    for rows, heads, length, size in ATTENTION_SHAPES:
        rows *= scale
        flops, scores = 4.0 * rows * heads * length**2 * size, float(rows * heads * length**2)
        shape4 = (rows, heads, length, size)
        yield (
            Work("student attention", "attention train", 3 * flops, scores, calls=12),
            partial(make_attention, random, shape4, True),
        )
        yield (
            Work("student attention", "attention forward", flops, scores, calls=6),
            partial(make_attention, random, shape4, False),
        )
    for rows, columns in ELEMENTWISE_SHAPES:
        rows *= scale
        for train in (True, False):
            yield (
                counts.gelu("student elementwise", rows * columns, width, train),
                partial(make_gelu, random, (rows, columns), train),
            )
            yield (
                counts.residual("student elementwise", rows, columns, width, train),
                partial(make_residual, random, (rows, columns), train),
            )
    yield from passes(random, width, scale)


def passes(random: Any, width: int, scale: int) -> Iterator[tuple[Work, Make]]:
    """Yield losses and plain passes over large tensors."""
    for rows in LOSS_ROWS:
        rows *= scale
        elements = float(rows * VOCABULARY)
        yield (
            replace(Work("vocabulary and losses", "loss mlm"), elements=elements, calls=8),
            partial(make_loss, random, rows, False),
        )
        yield (
            replace(Work("vocabulary and losses", "loss kd"), elements=elements, calls=12),
            partial(make_loss, random, rows, True),
        )
    for elements in (2**22, 2**24):
        elements *= scale
        moved = 3 * width * elements
        yield Work("optimizer", "stream", 0, moved, moved), partial(make_stream, random, elements)


def make_linear(
    random: Any, kind: type[nn.Linear], shape: tuple[int, int, int], train: bool
) -> Callable[[], object]:
    """Return a Linear's forward pass, or forward and backward."""
    tokens, inner, outer = shape
    inputs, upstream = random(tokens, inner, grad=True), random(tokens, outer)
    module = kind(inner, outer).to(device=inputs.device, dtype=inputs.dtype)

    def forward() -> object:
        with torch.no_grad():
            return module(inputs)

    def both() -> object:
        return torch.autograd.grad(module(inputs), [inputs, *module.parameters()], upstream)

    return both if train else forward


def make_attention(random: Any, shape: tuple[int, int, int, int], train: bool) -> Callable[[], object]:
    """Return attention as models call it here, from three hidden states to one."""
    rows, heads, length, size = shape
    states = [random(rows, length, heads * size, grad=train) for _ in range(3)]
    upstream = random(rows, length, heads, size)

    def attend() -> Tensor:
        query, key, value = (state.view(rows, length, heads, size).transpose(1, 2) for state in states)
        dropout = DROPOUT if train else 0.0
        if upstream.device.type == "cpu":
            return cpu_attention(nn.Identity(), query, key, value, None, dropout=dropout)[0]
        return (
            F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2).contiguous()
        )

    def forward() -> object:
        with torch.no_grad():
            return attend()

    return (lambda: torch.autograd.grad(attend(), states, upstream)) if train else forward


def make_gelu(random: Any, shape: tuple[int, int], train: bool) -> Callable[[], object]:
    """Return the activation."""
    inputs, upstream = random(*shape, grad=train), random(*shape)
    if train:
        return lambda: torch.autograd.grad(F.gelu(inputs), inputs, upstream)
    return lambda: F.gelu(inputs)


def make_residual(random: Any, shape: tuple[int, int], train: bool) -> Callable[[], object]:
    """Return dropout, addition and LayerNorm."""
    inputs, other, upstream = random(*shape, grad=train), random(*shape, grad=train), random(*shape)
    norm = nn.LayerNorm(shape[1]).to(device=inputs.device, dtype=inputs.dtype).requires_grad_(train)
    dropout = (CpuDropout if inputs.device.type == "cpu" else nn.Dropout)(DROPOUT)
    wanted = [inputs, other, *norm.parameters()]
    if train:
        return lambda: torch.autograd.grad(norm(dropout(inputs) + other), wanted, upstream)
    return lambda: norm(inputs + other)


def make_loss(random: Any, rows: int, distil: bool) -> Callable[[], object]:
    """Return a token loss with its gradient."""
    logits, teacher = random(rows, VOCABULARY, grad=True), random(rows if distil else 1, VOCABULARY)
    labels = torch.arange(rows, device=logits.device)
    if distil:
        return lambda: torch.autograd.grad(distillation_loss(logits, teacher, 2.0), logits)
    return lambda: torch.autograd.grad(masked_language_loss(logits, labels), logits)


def make_stream(random: Any, elements: int) -> Callable[[], object]:
    """Return an addition in place: three passes."""
    left, right = random(elements), random(elements)
    return lambda: left.add_(right)
