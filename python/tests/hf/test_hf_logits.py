"""PackedCache against transformers' own cache, and against our engine."""
from __future__ import annotations

import pathlib
from typing import Any

import pytest
import torch
from tiny_models import CACHE, KINDS, VOCAB, in_engine, logits_of, one_by_one, random_ids, tiny
from transformers import DynamicCache

import pmkvq
from pmkvq.hf import PackedCache


@pytest.mark.parametrize("attention", ["pmkvq", "sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_equal_dynamic_cache(kind: str, attention: str) -> None:
    model = tiny(kind, "eager")
    ids = random_ids(700)
    # A prompt of more than a chunk, single tokens over the end of a page, a few at once.
    cuts = [600, *range(601, 660), 680, 683]
    expected = logits_of(model, DynamicCache(config=model.config), ids, cuts)
    assert expected.std() > 0.5
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    found = logits_of(model, cache, ids, cuts)
    assert (found - expected).abs().max() < 1e-4
    assert cache.get_seq_length() == 700 and cache.num_tokens() == [700]


@pytest.mark.parametrize("kind", KINDS)
def test_f16_is_as_near_as_its_rounding(kind: str) -> None:
    """f16 has 11 bits: keys and values are off by 2^-12 of their size at most, and logits by some times that."""
    model = tiny(kind)
    ids = random_ids(300)
    expected = logits_of(model, DynamicCache(config=model.config), ids, one_by_one(200, 300))
    found = logits_of(model, PackedCache(model), ids, one_by_one(200, 300))
    error = (found - expected).abs().max()
    assert 0 < error < 50 * 2**-12 * expected.abs().max()


@pytest.mark.parametrize(
    ("kv", "options"),
    [
        ("fp16", {}),
        ("static-8", {}),
        ("static-4", {}),
        ("static-2", {}),
        ("pm-kvq", {"kv_budget": "250KiB"}),
        ("pm-kvq:policy=oldest-first+axis=channel", {"kv_budget": "250KiB"}),
        ("pm-kvq:rotate=both", {"kv_budget": "250KiB"}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_engine(tmp_path: pathlib.Path, kind: str, kv: str, options: dict[str, Any]) -> None:
    model = tiny(kind)
    prompt, answer = random_ids(600).tolist()[0], random_ids(200, seed=2).tolist()[0]
    cache = PackedCache(model, kv=kv, max_len=2048, **options)
    compare_with_engine(model, cache, in_engine(model, tmp_path, kv=kv, **options), prompt, answer)


def compare_with_engine(
    model: Any,
    cache: PackedCache,
    engine: pmkvq.LLM,
    prompt: list[int],
    answer: list[int],
    *,
    least: float = 0,
    most: float = 1e-3,
    shares: tuple[float, float] = (0.05, 0.25),
) -> None:
    """All logits behind the prompt, up to the constant that the engine's log-probabilities have not; and bytes.

    An error, in the median and the largest, is a share of what packing itself changes, and at most `most` in the median.
    least: an error that is allowed in any case.
    """
    params = pmkvq.SamplingParams(
        temperature=0, max_tokens=len(answer), ignore_eos=True, logprobs=VOCAB, logit_bias={}, seed=1
    )
    (drawn,) = engine.generate([prompt], params)
    ids = torch.tensor([prompt + drawn.token_ids])
    logits = logits_of(model, cache, ids, one_by_one(len(prompt), ids.shape[1]))[0, len(prompt) - 1 : -1]
    found = torch.log_softmax(logits, dim=-1)
    expected = torch.full((len(drawn.token_ids), VOCAB), float("nan"))
    for index, token in enumerate(drawn.logprobs):
        for token_id, logprob in token.top:
            expected[index, token_id] = logprob
    assert not expected.isnan().any()
    # The linear layers round differently, so that a value of some thousand falls to the next float or code. Results
    # are as near as that, and much nearer than other codes would make them.
    errors = (found - expected).abs().amax(dim=-1)
    exact = logits_of(model, DynamicCache(config=model.config), ids, [])[0, len(prompt) - 1 : -1]
    effect = (torch.log_softmax(exact, dim=-1) - expected).abs().amax(dim=-1)
    print(f"median {errors.median():.1e}, most {errors.max():.1e}; of packing {effect.median():.1e}, {effect.max():.1e}")
    bound = max(least, min(most, shares[0] * float(effect.median())))
    assert errors.median() < bound, (errors.median(), effect.median())
    assert errors.max() < max(5 * least, shares[1] * float(effect.max())), (errors.max(), effect.max())
    assert found.argmax(dim=-1).tolist() == drawn.token_ids
    # The engine does not store its last token.
    cache.crop(-1)
    stats = cache.stats()
    assert stats.bytes == drawn.kv.bytes and stats.pages == drawn.kv.pages
    assert stats.budget_bytes == drawn.kv.budget_bytes
    score = engine.score(prompt, answer)
    scored = torch.tensor([prompt + answer])
    cache.reset()
    logits = logits_of(model, cache, scored, one_by_one(len(prompt), scored.shape[1]))[0, len(prompt) - 1 : -1]
    chosen = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (chosen - torch.tensor(score.logprobs)).abs().median() < max(1e-3, bound)


def test_plan_with_key_scales(tmp_path: pathlib.Path) -> None:
    """A plan of the tiny model: other widths in each block, keys and values apart, keys scaled."""
    model = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    native = pmkvq.load_model(tmp_path / "model")
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(f'{{"input_ids": {random_ids(256, seed=seed).tolist()[0]}}}\n' for seed in range(8)))
    plan = pmkvq.calibrate(
        native, samples, memory_budget="300KiB", max_len=1024, n_samples=4, seq_len=128, separate_kv=True
    )
    assert plan.key_scales and len(set(plan.k_bits.tolist() + plan.v_bits.tolist())) > 1
    prompt, answer = random_ids(600).tolist()[0], random_ids(200, seed=2).tolist()[0]
    engine = pmkvq.LLM(native, kv="pm-kvq", plan=plan, max_sequences=1, max_len=1024)
    compare_with_engine(model, PackedCache(model, plan=plan, max_len=1024), engine, prompt, answer)
    # Dequantised keys are what the model gave, but for rounding.
    model.set_attn_implementation("sdpa")
    ids = random_ids(100)
    expected = logits_of(model, DynamicCache(config=model.config), ids, [60])
    found = logits_of(model, PackedCache(model, plan=plan, max_len=1024, kv_dtype="f32"), ids, [60])
    assert (found - expected).abs().max() < 1e-4


def test_dequantised_tensors_give_what_packed_attention_gives() -> None:
    ids = random_ids(420)
    cuts = one_by_one(400, 420)
    results = {}
    for attention in ("pmkvq", "sdpa"):
        model = tiny("qwen3", attention)
        results[attention] = logits_of(model, PackedCache(model, nbits=4), ids, cuts)
    # One prompt within a chunk, then tokens alone: the same pages at the same widths.
    assert (results["pmkvq"] - results["sdpa"]).abs().median() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    model = tiny("qwen2", "eager").to(dtype)
    ids = random_ids(200)
    expected = logits_of(model, DynamicCache(config=model.config), ids, one_by_one(150, 200))
    for attention in ("pmkvq", "sdpa"):
        model.set_attn_implementation(attention)
        found = logits_of(model, PackedCache(model, kv_dtype="f32"), ids, one_by_one(150, 200))
        assert found.dtype == dtype
        assert (found - expected).abs().max() < 64 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("attention", ["pmkvq", "sdpa"])
def test_sliding_windows(attention: str) -> None:
    """Pages outside of a block's window are freed, and nothing is lost."""
    model = tiny("mistral", "eager", sliding_window=200)
    ids = random_ids(900)
    cuts = [700, *range(701, 850)]
    expected = logits_of(model, DynamicCache(config=model.config), ids, cuts)
    whole = logits_of(tiny("mistral", "eager", sliding_window=None), DynamicCache(), ids, cuts)
    assert (whole - expected).abs().max() > 0.1
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    found = logits_of(model, cache, ids, cuts)
    assert (found - expected).abs().max() < 1e-4
    assert sum(cache.stats().pages.values()) <= 2 * 3 * 4
    with pytest.raises(pmkvq.Unsupported, match="window"):
        cache.crop(100)


@pytest.mark.parametrize("kind", KINDS)
def test_the_attention_without_our_cache(kind: str) -> None:
    """"pmkvq" as a model's attention is causal and sees padding, whatever cache there is."""
    model = tiny(kind, "eager")
    ids = random_ids(40, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    results = {}
    for attention in ("eager", "pmkvq"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            plain = model(ids, use_cache=False).logits
            padded = model(ids, attention_mask=mask, use_cache=False).logits[:, 7:]
            cache = DynamicCache(config=model.config)
            model(ids[:, :30], attention_mask=mask[:, :30], **{CACHE: cache})
            cached = model(ids[:, 30:], attention_mask=mask, **{CACHE: cache}).logits
        results[attention] = torch.cat([plain, padded, cached], dim=1)
    assert (results["eager"] - results["pmkvq"]).abs().max() < 1e-4
