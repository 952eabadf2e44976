"""generate with a PackedCache: greedy, beams, samples, padding, assistants, prompts used twice."""
from __future__ import annotations

import copy
import pathlib
from typing import Any

import pytest
import torch
from tiny_models import CACHE, KINDS, in_engine, logits_of, random_ids, tiny
from transformers import DynamicCache

import pmkvq
from pmkvq.hf import BudgetStop, PackedCache

ATTENTION = ["pmkvq", "sdpa"]


def generate(model: Any, ids: torch.Tensor, cache: Any, **more: Any) -> torch.Tensor:
    arguments = {"do_sample": False, "max_new_tokens": 40, "attention_mask": torch.ones_like(ids), **more}
    tokens: torch.Tensor = model.generate(ids, **{CACHE: cache}, **arguments)
    return tokens


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy(kind: str, attention: str) -> None:
    model = tiny(kind, "eager")
    ids = random_ids(150)
    expected = generate(model, ids, DynamicCache(config=model.config))
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    assert torch.equal(generate(model, ids, cache), expected)
    assert cache.num_tokens() == [189]  # The last token is drawn, not stored.


def test_greedy_is_the_engine_s(tmp_path: pathlib.Path) -> None:
    model = tiny("qwen3")
    ids = random_ids(300)
    budget: dict[str, Any] = {"kv": "pm-kvq", "kv_budget": "170KiB"}
    engine = in_engine(model, tmp_path, **budget)
    params = pmkvq.SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    (drawn,) = engine.generate([ids[0].tolist()], params)
    cache = PackedCache(model, max_len=2048, **budget)
    tokens = generate(model, ids, cache, max_new_tokens=200)
    assert tokens[0, 300:].tolist() == drawn.token_ids
    assert cache.nbytes == drawn.kv.bytes and cache.stats().pages == drawn.kv.pages
    assert cache.stats().halved_pages > 0


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of these lengths, padded on the left, and their mask."""
    longest = max(lengths)
    ids = torch.zeros((len(lengths), longest), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = random_ids(length, seed=row + 1)[0]
        mask[row, longest - length :] = 1
    return ids, mask


@pytest.mark.parametrize("kv", ["fp16", "static-2"])
def test_a_padded_row_is_the_row_alone(kv: str) -> None:
    model = tiny("llama")
    lengths = [300, 7, 600]
    ids, mask = padded(lengths)
    cache = PackedCache(model, kv=kv)
    together = generate(model, ids, cache, attention_mask=mask)[:, 600:]
    assert cache.num_tokens() == [length + 39 for length in lengths]
    assert cache.get_seq_length() == 639
    alone_bytes = 0
    for row, length in enumerate(lengths):
        alone = PackedCache(model, kv=kv)
        tokens = generate(model, random_ids(length, seed=row + 1), alone)[:, length:]
        assert torch.equal(tokens[0], together[row])
        alone_bytes += alone.nbytes
    assert cache.nbytes == alone_bytes


@pytest.mark.parametrize("attention", ATTENTION)
def test_left_padding_equals_dynamic_cache(attention: str) -> None:
    model = tiny("qwen2", "eager")
    ids, mask = padded([130, 20, 64])
    expected = generate(model, ids, DynamicCache(config=model.config), attention_mask=mask)
    model.set_attn_implementation(attention)
    assert torch.equal(generate(model, ids, PackedCache(model, kv_dtype="f32"), attention_mask=mask), expected)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("more", [{"num_beams": 4}, {"num_beams": 3, "num_return_sequences": 3}])
def test_beams(attention: str, more: dict[str, Any]) -> None:
    model = tiny("llama", "eager")
    ids, mask = padded([130, 60])
    expected = generate(model, ids, DynamicCache(config=model.config), attention_mask=mask, **more)
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    assert torch.equal(generate(model, ids, cache, attention_mask=mask, **more), expected)


def test_samples_of_one_prompt() -> None:
    model = tiny("qwen3", "eager")
    ids = random_ids(50)
    sampling = {"do_sample": True, "num_return_sequences": 4, "temperature": 1.5}
    torch.manual_seed(3)
    expected = generate(model, ids, DynamicCache(config=model.config), **sampling)
    model.set_attn_implementation("pmkvq")
    torch.manual_seed(3)
    assert torch.equal(generate(model, ids, PackedCache(model, kv_dtype="f32"), **sampling), expected)


@pytest.mark.parametrize("attention", ATTENTION)
def test_assisted_decoding(attention: str) -> None:
    """Drafts of a small model and of the prompt itself; what is not accepted is cropped."""
    model = tiny("llama", "eager")
    ids = random_ids(8).repeat(1, 20)
    expected = generate(model, ids, DynamicCache(config=model.config))
    model.set_attn_implementation(attention)
    assistant = tiny("llama", attention, num_hidden_layers=1)
    for drafts in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 4}):
        cache = PackedCache(model, kv_dtype="f32")
        assert torch.equal(generate(model, ids, cache, **drafts), expected)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("kv", ["fp16", "static-4"])
def test_a_prompt_used_twice(kv: str, attention: str) -> None:
    model = tiny("qwen3", attention)
    prompt = random_ids(300)
    stored = PackedCache(model, kv=kv)
    with torch.no_grad():
        model(prompt, **{CACHE: stored})
    for seed in (5, 6):
        ids = torch.cat([prompt, random_ids(20, seed=seed)], dim=1)
        whole = PackedCache(model, kv=kv)
        with torch.no_grad():
            model(prompt, **{CACHE: whole})
        expected = generate(model, ids, whole)
        copied = copy.deepcopy(stored)
        assert torch.equal(generate(model, ids, copied), expected)
        assert copied.nbytes == whole.nbytes
    assert stored.num_tokens() == [300]


@pytest.mark.parametrize("attention", ATTENTION)
def test_crop_and_go_on(attention: str) -> None:
    model = tiny("llama", "eager")
    ids = random_ids(400)
    expected = logits_of(model, DynamicCache(config=model.config), ids, [])[:, 250:]
    model.set_attn_implementation(attention)
    cache = PackedCache(model, kv_dtype="f32")
    logits_of(model, cache, random_ids(390, seed=9), [])
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0
    logits_of(model, cache, torch.cat([ids[:, :260], random_ids(130, seed=9)], dim=1), [])
    cache.crop(-100)
    cache.crop(260)
    cache.crop(-10)
    assert cache.get_seq_length() == 250 and cache.num_tokens() == [250]
    assert (logits_of(model, cache, ids[:, 250:], []) - expected).abs().max() < 1e-4
    cache.crop(-1000)
    assert cache.get_seq_length() == 0


def test_crop_of_a_padded_batch() -> None:
    model = tiny("llama")
    ids, mask = padded([200, 30])
    cache = PackedCache(model, nbits=8)
    with torch.no_grad():
        model(ids, attention_mask=mask, **{CACHE: cache})
    cache.crop(-60)
    assert cache.get_seq_length() == 140 and cache.num_tokens() == [140, 0]
    with torch.no_grad():
        again = model(ids[:, 140:], attention_mask=mask, **{CACHE: cache}).logits[1, -1]
        alone = model(random_ids(30, seed=2), **{CACHE: PackedCache(model, nbits=8)}).logits[0, -1]
    assert torch.allclose(again, alone, atol=1e-4)


def test_rows_of_the_batch() -> None:
    """Rows that are selected, repeated and reordered go on as they would have."""
    model = tiny("qwen2")
    ids = random_ids(300, batch=3)
    more = random_ids(140, seed=4, batch=3)
    cache = PackedCache(model, nbits=4, max_len=1024)
    logits_of(model, cache, ids, [])
    expected = logits_of(model, copy.deepcopy(cache), more, list(range(1, 140)))
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    cache.reorder_cache(torch.LongTensor([5, 0, 0, 3, 1, 2]))  # Rows 2 0 0 1 0 1 of the first batch.
    cache.batch_select_indices(torch.tensor([0, 1, 4, 5]))
    cache.batch_select_indices(torch.tensor([True, True, False, True]))
    rows = [2, 0, 1]
    assert cache.batch_size == 3
    found = logits_of(model, cache, more[rows], list(range(1, 140)))
    assert torch.equal(found, expected[rows])
    for layer in range(3):
        assert torch.isfinite(cache.read(layer)[0]).all()


def test_the_budget_ends_generation() -> None:
    model = tiny("llama")
    ids = random_ids(300)
    cache = PackedCache(model, kv="pm-kvq", kv_budget="200KiB")
    with pytest.raises(pmkvq.KvBudgetExhausted, match="BudgetStop"):
        generate(model, ids, cache, max_new_tokens=1500)
    most = cache.num_tokens()[0]
    assert 400 < most < 1500 and not cache.fits() and cache.get_seq_length() == most
    assert cache.stats().peak_bytes <= cache.stats().budget_bytes <= 200 * 1024
    cache.reset()
    assert cache.fits()
    tokens = generate(model, ids, cache, max_new_tokens=1500, stopping_criteria=[BudgetStop(cache)])
    assert tokens.shape[1] == most + 1 and cache.num_tokens() == [most]
    # It can be cut and go on.
    cache.crop(-200)
    assert cache.fits(100)
    assert logits_of(model, cache, random_ids(100), []).isfinite().all()


def test_no_page_goes_below_nbits() -> None:
    model = tiny("llama")
    cache = PackedCache(model, nbits=4, kv_budget="200KiB")
    assert cache.method == "pm-kvq"
    generate(model, random_ids(300), cache, max_new_tokens=1500, stopping_criteria=[BudgetStop(cache)])
    pages = cache.stats().pages
    assert pages[4] > 0 and pages[2] == 0


def test_prompts_in_chunks_of_generate() -> None:
    model = tiny("qwen3", "eager")
    ids = random_ids(300)
    expected = generate(model, ids, DynamicCache(config=model.config))
    model.set_attn_implementation("pmkvq")
    assert torch.equal(generate(model, ids, PackedCache(model, kv_dtype="f32"), prefill_chunk_size=77), expected)
