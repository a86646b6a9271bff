"""FLOPs and bytes of a training step from the model's config alone."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from sparse_pretrain.costs.work import Term, Work

# Bytes moved an element follow from what the kernels read and write (docs/planning.md); width is the precision's.
FP32 = 4
# What a ZeRO-3 hook takes of the host, in kernel launches.
HOOK_CALLS = 16


@dataclass(frozen=True)
class Shape:
    """The sizes of an encoder with a masked-language head.

    Attributes:
        layers: encoder layers.
        width: of hidden states.
        inner: of the feed-forward layer.
        heads: of attention.
        vocabulary: tokens.
        parameters: all of them, a tied one once.
        tensors: parameters as tensors.
        prunable: weights with a mask.
        matrices: prunable matrices.
        pooled: a next-sentence head is trained.
    """

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    parameters: int
    tensors: int
    prunable: int = 0
    matrices: int = 0
    pooled: bool = False

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        parameters: int,
        tensors: int,
        prunable: int = 0,
        matrices: int = 0,
        pooled: bool = False,
    ) -> "Shape":
        """Read the sizes of a config; DistilBERT has names of its own."""
        inner = getattr(config, "intermediate_size", None) or config.hidden_dim
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            inner,
            config.num_attention_heads,
            config.vocab_size,
            parameters,
            tensors,
            prunable,
            matrices,
            pooled,
        )


@dataclass(frozen=True)
class Pass:
    """One micro-batch on one rank.

    Attributes:
        rows: of the micro-batch.
        length: tokens of a row.
        predicted: positions with a masked-language loss.
        logits: positions at which the vocabulary is predicted.
    """

    rows: int
    length: int
    predicted: float
    logits: float

    @property
    def tokens(self) -> int:
        """Slots through the encoder."""
        return self.rows * self.length


def linear(term: Term, tokens: float, inner: int, outer: int, width: int, backward: bool) -> list[Work]:
    """Return a Linear's forward pass, and its backward pass (both gradients: twice the FLOPs and bytes)."""
    elements = inner * outer + tokens * (inner + outer)
    forward = Work(term, "linear forward", 2 * tokens * inner * outer, elements, width * elements, 1)
    if not backward:
        return [forward]
    return [
        forward,
        Work(term, "linear backward", 4 * tokens * inner * outer, elements, 2 * width * elements, 3),
    ]


def projection(term: Term, positions: float, shape: Shape, width: int, backward: bool) -> list[Work]:
    """Return the projection on the vocabulary, like `linear`."""
    inner, outer = shape.width, shape.vocabulary
    elements = inner * outer + positions * (inner + outer)
    flops = 2 * positions * inner * outer
    forward = Work(term, "projection forward", flops, elements, width * elements, 1)
    if not backward:
        return [forward]
    return [forward, Work(term, "projection backward", 2 * flops, elements, 2 * width * elements, 3)]


def encoder(shape: Shape, batch: Pass, width: int, train: bool) -> list[Work]:
    """Return forward (and backward) of the encoder: embeddings, then layers."""
    tokens, hidden, inner = batch.tokens, shape.width, shape.inner
    terms: tuple[Term, Term, Term] = ("student matmuls", "student attention", "student elementwise")
    if not train:
        terms = ("teacher", "teacher", "teacher")
    matmul, attention, elementwise = terms
    layer: list[Work] = []
    for _ in range(4):
        layer += linear(matmul, tokens, hidden, hidden, width, train)
    layer += linear(matmul, tokens, hidden, inner, width, train)
    layer += linear(matmul, tokens, inner, hidden, width, train)
    flops = 4 * tokens * batch.length * hidden
    scores = batch.rows * shape.heads * batch.length**2
    # Fused attention reads q, k, v and writes the output; backward reads them again and writes three gradients.
    layer.append(
        Work(attention, "attention train", 3 * flops, scores, 12 * width * tokens * hidden, 12)
        if train
        else Work(attention, "attention forward", flops, scores, 4 * width * tokens * hidden, 6)
    )
    layer += elementwise_layer(elementwise, tokens, hidden, inner, width, train)
    works = [work.times(shape.layers) for work in layer]
    works.append(residual(elementwise, tokens, hidden, width, train))
    return works


def elementwise_layer(
    term: Term, tokens: float, hidden: int, inner: int, width: int, train: bool
) -> list[Work]:
    """Return a layer's two residual blocks and its activation."""
    block = residual(term, tokens, hidden, width, train).times(2)
    return [block, gelu(term, tokens * inner, width, train)]


def residual(term: Term, tokens: float, hidden: int, width: int, train: bool) -> Work:
    """Return dropout, addition and LayerNorm of one block: 7 passes forward, 8 backward, the masks 2 bytes."""
    elements = tokens * hidden
    if train:
        return Work(term, "residual train", 0, elements, (15 * width + 2) * elements, 8)
    return Work(term, "residual forward", 0, elements, 5 * width * elements, 2)


def gelu(term: Term, elements: float, width: int, train: bool) -> Work:
    """Return an activation: reads and writes once, backward reads twice and writes once."""
    if train:
        return Work(term, "gelu train", 0, elements, 5 * width * elements, 2)
    return Work(term, "gelu forward", 0, elements, 2 * width * elements, 1)


def head(shape: Shape, batch: Pass, width: int, train: bool) -> list[Work]:
    """Return the masked-language head at its positions: transform, activation, LayerNorm, projection."""
    term: Term = "vocabulary and losses" if train else "teacher"
    positions, hidden = batch.logits, shape.width
    works = linear(term, positions, hidden, hidden, width, train)
    works.append(gelu(term, positions * hidden, width, train))
    works += projection(term, positions, shape, width, train)
    return works


def losses(shape: Shape, batch: Pass, width: int, teachers: int) -> list[Work]:
    """Return cross-entropy at the predicted positions and, with teachers, KD at all positions with logits.

    The gradient of a block of rows is computed with the loss, in fp32: softmax and its copies are 6 passes of 4 bytes,
    KD's two are 17.
    """
    term: Term = "vocabulary and losses"
    predicted, everywhere = batch.predicted * shape.vocabulary, batch.logits * shape.vocabulary
    works = [
        Work(term, "loss mlm", 0, predicted, (3 * width + 6 * FP32) * predicted, 8),
    ]
    if teachers != 1:
        # The gradient of all logits: zeros at first, times what comes from above. With one teacher there is one
        # gradient for both losses, written once.
        works.append(Work(term, "stream", 0, 3 * width * everywhere, 3 * width * everywhere, 2))
    if teachers:
        works.append(
            Work(term, "loss kd", 0, everywhere, (5 * width + 17 * FP32) * everywhere, 12).times(teachers)
        )
    if teachers > 1:
        # Gradients of the same logits are added.
        works.append(Work(term, "stream", 0, 3 * width * everywhere, 3 * width * everywhere, 1))
    return works


def pooler(shape: Shape, batch: Pass, width: int) -> list[Work]:
    """Return next-sentence prediction: two products of a token a row."""
    if not shape.pooled:
        return []
    term: Term = "vocabulary and losses"
    return [
        *linear(term, batch.rows, shape.width, shape.width, width, True),
        *linear(term, batch.rows, shape.width, 2, width, True),
    ]


def micro_batch(shape: Shape, batch: Pass, width: int, teacher_shapes: tuple[Shape, ...] = ()) -> list[Work]:
    """Return everything that one micro-batch costs one rank before gradients are reduced."""
    works = encoder(shape, batch, width, train=True) + head(shape, batch, width, train=True)
    works += losses(shape, batch, width, len(teacher_shapes)) + pooler(shape, batch, width)
    for teacher in teacher_shapes:
        works += encoder(teacher, batch, width, train=False) + head(teacher, batch, width, train=False)
    # Each gradient goes to its bucket and, in fp32, to the sum over micro-batches.
    moved = (3 * width + 3 * FP32) * shape.parameters
    works.append(Work("gradients", "gradient", 0, shape.parameters, moved, 3 * shape.tensors))
    return works


def optimizer(shape: Shape, ranks: int, width: int) -> list[Work]:
    """Return the update of this rank's part: norm, clipping, AdamW (7 fp32 numbers), cast to the working copy."""
    owned = shape.parameters / ranks
    return [Work("optimizer", "optimizer", 0, owned, (44 + width) * owned, 60)]


def sharded_modules(shape: Shape) -> list[Work]:
    """Return what DeepSpeed's hooks cost the host at stage 3 in one micro-batch: modules, forward and backward.

    A module has two tensors, its weight and its bias. `HOOK_CALLS` is an assumption: 0.1 ms of Python a hook.
    """
    return [Work("loop", "stage 3 hooks", calls=shape.tensors * HOOK_CALLS)]


def masks(shape: Shape, ranks: int, width: int, stage: int) -> list[Work]:
    """Return what masks cost a step: gradients of this rank's part, then the working copy."""
    if not shape.prunable:
        return []
    held = shape.prunable / (ranks if stage == 3 else 1)
    gradients = shape.prunable / ranks
    return [
        Work("masks", "mask gradients", 0, gradients, 9 * gradients, shape.matrices),
        Work("masks", "mask working", 0, held, (2 * width + 1) * held, shape.matrices),
    ]


def mask_update(shape: Shape, ranks: int) -> list[Work]:
    """Return one update: three histograms of this rank's part, and whole masks compared and replaced on every rank."""
    if not shape.prunable:
        return []
    return [
        Work(
            "mask updates",
            "mask update",
            0,
            shape.prunable / ranks,
            60 * shape.prunable / ranks,
            40 * shape.matrices,
        ),
        Work("mask updates", "mask replace", 0, shape.prunable, 8 * shape.prunable, 10 * shape.matrices),
    ]


def model_flops(works: list[Work]) -> float:
    """Return the matrix FLOPs of works: what MFU counts (nothing is recomputed)."""
    return sum(work.flops for work in works)
