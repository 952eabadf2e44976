"""Architectures beside those that pmkvq loads itself: what is supported works, what is not says so."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CACHE, VOCAB, family, logits_of, random_ids
from transformers import DynamicCache

from pmkvq import Unsupported
from pmkvq.hf import PackedCache

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SHAPE, head_dim=32, sliding_window=100, query_pre_attn_scalar=48
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=3, n_head=4, n_positions=1024, bos_token_id=None, eos_token_id=None
    ),
    "granite": lambda: transformers.GraniteConfig(**SHAPE, attention_multiplier=0.4),
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4),
    "olmo2": lambda: transformers.Olmo2Config(**SHAPE),
    "phi3": lambda: transformers.Phi3Config(**SHAPE),
    "smollm3": lambda: transformers.SmolLM3Config(**SHAPE),
    "starcoder2": lambda: transformers.Starcoder2Config(**SHAPE, sliding_window=None),
}


@pytest.mark.parametrize("attention", ["pmkvq", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_16_bits_equal_dynamic_cache(name: str, attention: str) -> None:
    model = family(CONFIGS[name](), "eager")
    ids = random_ids(400)
    cuts = [250, *range(251, 290), 310]
    expected = logits_of(model, DynamicCache(config=model.config), ids, cuts)
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    found = logits_of(model, cache, ids, cuts)
    assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    # And nothing else than 16 bits gives that.
    packed = logits_of(model, PackedCache(model, nbits=2), ids, cuts)
    assert (packed - expected).abs().max() > 1e-3


def test_soft_caps_are_refused_and_dequantised() -> None:
    config = transformers.Gemma2Config(**SHAPE, head_dim=32, attn_logit_softcapping=5.0, sliding_window=1024)
    model = family(config, "eager")
    ids = random_ids(200)
    expected = logits_of(model, DynamicCache(config=model.config), ids, [150])
    found = logits_of(model, PackedCache(model, kv_dtype="f32"), ids, [150])
    assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    model.set_attn_implementation("pmkvq")
    with pytest.raises(Unsupported, match="softcap"):
        logits_of(model, PackedCache(model), ids, [])


def test_inference_mode() -> None:
    model = family(CONFIGS["olmo2"](), "pmkvq")
    ids = random_ids(50)
    expected = logits_of(model, PackedCache(model), ids, [40])
    cache = PackedCache(model)
    with torch.inference_mode():
        model(ids[:, :40], **{CACHE: cache})
        assert torch.equal(model(ids[:, 40:], **{CACHE: cache}).logits, expected[:, 40:])


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (transformers.Gemma3nTextConfig(num_hidden_layers=4, num_kv_shared_layers=2), "share keys"),
        (transformers.MambaConfig(num_hidden_layers=2), "decoder"),
        (transformers.DeepseekV3Config(num_hidden_layers=2), "one shape"),
        (transformers.Qwen3NextConfig(num_hidden_layers=4), "linear_attention"),
    ],
)
def test_other_caches_are_refused(config: Any, word: str) -> None:
    with pytest.raises(Unsupported, match=word):
        PackedCache(config)
