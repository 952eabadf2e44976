"""Everything that is refused, and that nothing is computed wrongly instead."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import CACHE, HEAD_DIM, NUM_KV_HEADS, NUM_LAYERS, logits_of, random_ids, tiny
from transformers import (
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    T5Config,
)

import pmkvq
from pmkvq import InvalidInput, RequestFailed, Unsupported
from pmkvq.hf import PackedCache


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"kv": "kivi"}, "static-4"),
        ({"kv": "static-3"}, "static-4"),
        ({"kv": "pm-kvq"}, "budget"),
        ({"kv": "static-4", "nbits": 4}, "nbits"),
        ({"nbits": 3}, "nbits"),
        ({"residual_length": -1}, "residual_length"),
        ({"kv_dtype": "f64"}, "f16"),
        ({"kv_budget": "1KiB"}, "budget"),
        ({"kv_budget": 0}, "kv_budget"),
        ({"kv": "pm-kvq", "plan": "no.json"}, "no.json"),
    ],
)
def test_options(options: dict[str, Any], word: str) -> None:
    with pytest.raises(pmkvq.Error, match=word) as caught:
        PackedCache(tiny("llama"), **options)
    assert "\n" not in str(caught.value)


def test_models() -> None:
    path: Any = "models/longcot-10m"
    with pytest.raises(InvalidInput, match="found str, expected a model of transformers"):
        PackedCache(path)
    # As torch.compile wraps it.
    wrapped: Any = torch.nn.Module()
    wrapped.config = tiny("llama").config
    assert len(PackedCache(wrapped, nbits=4).layers) == NUM_LAYERS
    with pytest.raises(pmkvq.Error, match="head_dim"):
        PackedCache(LlamaConfig(hidden_size=72, num_attention_heads=4, num_key_value_heads=4))
    with pytest.raises(Unsupported, match="T5Config"):
        PackedCache(T5Config())
    with pytest.raises(Unsupported, match="linear_attention"):
        config = LlamaConfig(num_hidden_layers=2)
        config.layer_types = ["full_attention", "linear_attention"]
        PackedCache(config)
    # The names that other configs have for the same numbers.
    assert len(PackedCache(GPT2Config(n_layer=2, n_head=4, n_embd=64), nbits=4).layers) == 2


def test_a_plan_of_another_shape() -> None:
    with pytest.raises(InvalidInput, match="made for"):
        PackedCache(tiny("llama"), plan="models/longcot-10m/plan.json")


def keys(tokens: int = 3, **more: Any) -> torch.Tensor:
    return torch.zeros(1, NUM_KV_HEADS, tokens, HEAD_DIM, **more)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (keys(device="meta"), "meta.*cpu"),
        (keys(dtype=torch.float64), "float64"),
        (keys(requires_grad=True), "no_grad"),
        (torch.zeros(1, NUM_KV_HEADS + 1, 3, HEAD_DIM), "config"),
        (torch.zeros(1, NUM_KV_HEADS, 3, HEAD_DIM * 2), "config"),
    ],
)
def test_tensors(given: torch.Tensor, word: str) -> None:
    cache = PackedCache(tiny("llama"))
    with pytest.raises(Unsupported, match=word):
        cache.update(given, given, 0)


def test_values_that_the_cache_cannot_hold() -> None:
    model = tiny("llama", "sdpa")
    cache = PackedCache(model)
    huge = keys() + 1e6  # f16 ends at 65504.
    with pytest.raises(InvalidInput, match="key"):
        cache.update(huge, huge, 0)
    cache.reset()
    cache.update(keys(), keys(), 0)
    with pytest.raises(InvalidInput, match="block 1, position"):
        cache.update(huge, keys(), 1)
    cache.reset()
    assert logits_of(model, cache, random_ids(10), []).isfinite().all()


def test_another_batch() -> None:
    model = tiny("llama")
    cache = PackedCache(model)
    logits_of(model, cache, random_ids(10), [])
    with pytest.raises(InvalidInput, match="batch of 2"):
        logits_of(model, cache, random_ids(10, batch=2), [])
    cache.reset()
    logits_of(model, cache, random_ids(10, batch=2), [])
    for rows in ([2], [-3], []):
        with pytest.raises(InvalidInput, match="rows"):
            cache.batch_select_indices(torch.tensor(rows, dtype=torch.long))
    with pytest.raises(InvalidInput, match="repeats"):
        cache.batch_repeat_interleave(0)


def test_masks() -> None:
    model = tiny("llama")
    ids = random_ids(6, batch=2)
    right = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    hole = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]])
    for mask in (right, hole):
        with pytest.raises(Unsupported, match="padding_side"), torch.no_grad():
            model(ids, attention_mask=mask, **{CACHE: PackedCache(model)})
    custom = torch.zeros(2, 1, 6, 6)
    with pytest.raises(Unsupported, match="attention mask"), torch.no_grad():
        model(ids, attention_mask=custom, **{CACHE: PackedCache(model)})
    cache = PackedCache(model)
    with torch.no_grad():
        model(ids, **{CACHE: cache})
        # Tokens that were stored cannot become padding, nor padding tokens.
        late = torch.tensor([[1] * 7, [0] + [1] * 6])
        with pytest.raises(Unsupported, match="hides other tokens"):
            model(ids[:, :1], attention_mask=late, **{CACHE: cache})
        model(ids[:, :1], **{CACHE: cache})
    assert cache.num_tokens() == [7, 7]


def test_attention_that_is_not_plain() -> None:
    model = tiny("llama", attention_dropout=0.5)
    model.train()
    with pytest.raises(Unsupported, match="eval"), torch.no_grad():
        model(random_ids(4), **{CACHE: PackedCache(model)})
    model.eval()
    with pytest.raises(Unsupported, match="no_grad"):
        model(random_ids(4), **{CACHE: PackedCache(model)})
    with pytest.raises(Unsupported, match="output_attentions"), torch.no_grad():
        model(random_ids(4), **{CACHE: PackedCache(model)}, output_attentions=True)
    bidirectional = tiny("llama")
    bidirectional.config.is_causal = False
    with pytest.raises(Unsupported, match="neither causal"), torch.no_grad():
        bidirectional(random_ids(4), **{CACHE: PackedCache(bidirectional)})


def test_an_attention_function_that_is_not_ours() -> None:
    """Keys of update() are new ones only. Who takes them for all keys must not get a result."""
    model = tiny("llama", "sdpa")
    cache = PackedCache(model)
    model.config._attn_implementation = "pmkvq"  # Not the layers' own copies, if there are any.
    pending, values = cache.update(keys(), keys(), 0)
    assert pending.shape == (1, NUM_KV_HEADS, 3, HEAD_DIM) and pending.dtype == torch.float32
    uses: list[Callable[[], object]] = [
        lambda: pending @ values.transpose(-1, -2),
        lambda: torch.nn.functional.scaled_dot_product_attention(values, pending, values),
        lambda: pending[:, :, None],
        lambda: pending.repeat_interleave(2, dim=1),
        lambda: torch.cat([pending, pending]),
        lambda: pending.numpy(),
    ]
    for use in uses:
        with pytest.raises(Unsupported, match="set_attn_implementation"):
            use()
    # And the cache does not count what was never attended.
    with pytest.raises(RequestFailed, match="did not attend"):
        cache.update(keys(), keys(), 0)
    assert cache.get_seq_length() == 0


def test_a_forward_that_ended_early() -> None:
    model = tiny("llama")
    ids = random_ids(300)
    expected = logits_of(model, PackedCache(model, kv_dtype="f32"), ids, [200])
    cache = PackedCache(model, kv_dtype="f32")
    logits_of(model, cache, ids[:, :200], [])

    def fails(*_: Any) -> None:
        raise MemoryError

    hook = model.model.layers[1].mlp.register_forward_hook(fails)
    with pytest.raises(MemoryError):
        logits_of(model, cache, ids[:, 200:], [])
    hook.remove()
    with pytest.raises(RequestFailed, match="200 are left"):
        logits_of(model, cache, ids[:, 200:], [])
    assert cache.get_seq_length() == 200
    assert torch.equal(logits_of(model, cache, ids[:, 200:], []), expected[:, 200:])


def test_both_registries_have_the_name() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    assert "pmkvq" in ALL_ATTENTION_FUNCTIONS and "pmkvq" in ALL_MASK_ATTENTION_FUNCTIONS


def test_softcaps() -> None:
    from pmkvq.hf._attention import attention

    model = tiny("llama")
    for more in ({"softcap": 30.0}, {"s_aux": torch.zeros(4)}):
        with pytest.raises(Unsupported, match="expected plain attention"):
            attention(model, keys(), keys(), keys(), None, **more)


def test_dynamic_cache_stays_as_it_is() -> None:
    """Importing pmkvq.hf changes no other cache."""
    model = tiny("llama", "sdpa")
    cache = DynamicCache(config=model.config)
    logits_of(model, cache, random_ids(10), [])
    assert cache.get_seq_length() == 10
