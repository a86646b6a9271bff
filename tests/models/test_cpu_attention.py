"""Attention and dropout on CPUs: the slow twins are Hugging Face's eager attention and a plain product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.models.bert.modeling_bert import eager_attention_forward

from sparse_pretrain.models.cpu_attention import cpu_attention, register
from sparse_pretrain.models.cpu_dropout import CpuDropout, draw_seed, keep_mask, quicken_dropout


def inputs(seed: int, queries: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, queries, width)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def padding(queries: int, dtype: torch.dtype) -> Tensor:
    """The second row's last third is padding."""
    mask = torch.zeros(2, 1, 1, queries, dtype=dtype)
    mask[1, ..., queries - queries // 3 :] = torch.finfo(dtype).min
    return mask


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([4, 8, 16]), st.booleans())
def test_outputs_and_gradients_are_eager_attentions(
    seed: int, queries: int, width: int, padded: bool
) -> None:
    mask = padding(queries, torch.float32) if padded else None
    results = []
    for function in (cpu_attention, eager_attention_forward):
        tensors = inputs(seed, queries, width, torch.float32)
        output, _ = function(nn.Identity(), *tensors, mask)
        output.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([output, *(tensor.grad for tensor in tensors)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_without_gradients_it_is_the_same() -> None:
    tensors = inputs(0, 12, 8, torch.float32)
    mask = padding(12, torch.float32)
    with_gradient, _ = cpu_attention(nn.Identity(), *tensors, mask)
    with torch.no_grad():
        without, _ = cpu_attention(nn.Identity(), *tensors, mask)
    assert torch.equal(with_gradient, without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_inside_is_the_product_with_its_mask(dtype: torch.dtype) -> None:
    results = []
    for function in ("ours", "plain"):
        query, key, value = inputs(1, 9, 8, dtype)
        torch.manual_seed(5)
        if function == "ours":
            output, _ = cpu_attention(nn.Identity(), query, key, value, None, dropout=0.25)
        else:
            shares = ((query * 8**-0.5) @ key.transpose(2, 3)).softmax(-1)
            output = ((shares * keep_mask(draw_seed(), shares.shape, 0.25, dtype)) @ value).transpose(1, 2)
        output.float().square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([output, query.grad, key.grad, value.grad])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_keeps_its_share_and_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = keep_mask(draw_seed(), torch.Size((401, 1003)), 0.1, dtype)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.9, dtype=dtype).item()}
    assert (mask == 0).float().mean() == pytest.approx(0.1, abs=0.002)
    # Neighbours know nothing of each other.
    zeros = (mask == 0).float().flatten()
    assert (zeros[1:] * zeros[:-1]).mean() == pytest.approx(0.01, abs=0.001)


def test_masks_follow_the_global_generator() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = (keep_mask(draw_seed(), torch.Size((50,)), 0.5, torch.float32) for _ in range(2))
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(keep_mask(draw_seed(), torch.Size((50,)), 0.5, torch.float32), first)


def test_dropout_layers_drop_in_training_only_and_pass_gradients() -> None:
    layer = nn.Sequential(nn.Dropout(0.5))
    quicken_dropout(layer)
    assert type(layer[0]) is CpuDropout
    values = torch.ones(1000, requires_grad=True)
    dropped = layer(values)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped)  # type: ignore[arg-type]
    assert layer.eval()(values) is values


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
def test_models_answer_as_with_eager_attention(model_type: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    small = (
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64} if model_type == "distilbert" else sizes
    )
    ids = torch.randint(5, 90, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 10, dtype=torch.int64)
    mask[1, 6:] = 0
    answers = []
    for attention in (register(), "eager"):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, vocab_size=100, **small)
        model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention).eval()
        answers.append(model(input_ids=ids, attention_mask=mask).logits)
        assert register() not in model.config.to_json_string(), "nobody else knows it"
    torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)
