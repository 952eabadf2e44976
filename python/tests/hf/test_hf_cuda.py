"""PackedCache on a CUDA device: beside the CPU's, beside transformers' own cache, and beside our engine there."""
from __future__ import annotations

import copy
import json
import pathlib
from typing import Any

import pytest
import torch
from conftest import MODEL, PLAN, PROBLEM
from test_hf_engine_keys import PROMPT, Recorded, recorded  # noqa: F401  (a fixture)
from test_hf_generate import generate, padded
from test_hf_logits import compare_with_engine
from tiny_models import CACHE, KINDS, in_engine, logits_of, one_by_one, random_ids, tiny
from transformers import AutoModelForCausalLM, DynamicCache

import pmkvq
from pmkvq.hf import BudgetStop, PackedCache
from pmkvq.hf._cache import PackedLayer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not pmkvq.devices().devices, reason=f"torch or pmkvq: {pmkvq.devices()}"
    ),
]
HEADS: dict[str, Any] = {"head_dim": 64}
PROGRESSIVE: dict[str, Any] = {"kv": "pm-kvq", "kv_budget": "500KiB"}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("fp16", {}),
    ("static-8", {}),
    ("static-4", {}),
    ("static-2", {}),
    ("pm-kvq", {"kv_budget": "500KiB"}),
    ("pm-kvq:policy=oldest-first+axis=channel", {"kv_budget": "500KiB"}),
    ("pm-kvq:rotate=both", {"kv_budget": "500KiB"}),
    ("fp16", {"sink_tokens": 130}),
]


def on_both(kind: str, attention: str = "pmkvq", **more: Any) -> tuple[Any, Any]:
    """A model of float32 on the CPU and on the device."""
    return tiny(kind, attention, **HEADS, **more), tiny(kind, attention, **HEADS, **more).cuda()


@pytest.mark.parametrize("attention", ["pmkvq", "sdpa"])
@pytest.mark.parametrize(("kv", "options"), METHODS)
def test_the_same_pages_and_values_as_on_the_cpu(kv: str, options: dict[str, Any], attention: str) -> None:
    """The same tensors into both caches: equal bytes, pages and values as they read, outputs within rounding."""
    cpu_model, cuda_model = on_both("llama", attention)
    caches = [PackedCache(model, kv=kv, max_len=2048, **options) for model in (cpu_model, cuda_model)]
    generator = torch.Generator().manual_seed(5)
    scale = 64**-0.5
    # A prompt, tokens behind it, single ones over the end of a page (640 and the sink), a few at once.
    for new in [500, 130, *[1] * 16, 3, 20]:
        q = torch.randn((1, 4, new, 64), generator=generator)
        k, v = torch.randn((2, 1, 2, new, 64), generator=generator).unbind()
        for layer in range(3):
            outs = []
            for cache, device in zip(caches, ("cpu", "cuda"), strict=True):
                keys, values = cache.update(k.to(device), v.to(device), layer)
                if attention == "pmkvq":
                    out = cache._packed[layer].attend(q.to(device), keys.keys, values, None, 1.0, None)
                else:
                    rows = torch.arange(keys.shape[2] - new, keys.shape[2])[:, None]
                    mask = (torch.arange(keys.shape[2])[None] <= rows).to(device)
                    out = torch.nn.functional.scaled_dot_product_attention(
                        q.to(device), keys, values, mask, scale=scale, enable_gqa=True
                    )
                outs.append(out.cpu())
            # Queries and weights are F16 on the device.
            assert (outs[0] - outs[1]).abs().max() < 8e-3, (new, layer)
    for layer in range(3):
        codes = [cache._shared.native.packed_bytes(layer, 0) for cache in caches]
        # Codes, (min, range), 16-bit floats: each bit.
        if "rotate" not in kv:  # Whose sums the device adds up in another order.
            assert codes[0] == codes[1] and len(codes[0][0]) > 500 * 2 * 64 // 4
        for cpu, cuda in zip(caches[0].read(layer), caches[1].read(layer), strict=True):
            # A dequantised value is rounded to F16 on the device.
            assert (cpu - cuda.cpu()).abs().max() <= 2**-10 * cpu.abs().max()
    stats = [cache.stats() for cache in caches]
    assert stats[0].bytes == stats[1].bytes and stats[0].pages == stats[1].pages
    assert stats[0].halved_pages == stats[1].halved_pages


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("attention", ["pmkvq", "sdpa"])
def test_logits_are_those_of_dynamic_cache(kind: str, attention: str) -> None:
    """16 bits: as near as the rounding of keys, values, queries and weights to F16."""
    model = tiny(kind, "eager", **HEADS).cuda()
    ids = random_ids(670)
    cuts = [500, 630, *range(631, 646), 660, 663]
    expected = logits_of(model, DynamicCache(config=model.config), ids, cuts)
    model.set_attn_implementation(attention)
    cache = PackedCache(model)
    found = logits_of(model, cache, ids, cuts)
    assert 0 < (found - expected).abs().max() < 100 * 2**-12 * expected.abs().max()
    assert cache.num_tokens() == [670]


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("bfloat16", "f16"), ("bfloat16", "bf16"), ("float16", "f16")])
def test_half_precision_models(dtype: str, kv_dtype: str) -> None:
    """As far from the float32 model as DynamicCache in the same precision is, and of its type."""
    exact = tiny("qwen2", "eager", **HEADS).cuda()
    ids = random_ids(340)
    cuts = one_by_one(300, 340)
    expected = logits_of(exact, DynamicCache(config=exact.config), ids, cuts)
    model = tiny("qwen2", "sdpa", **HEADS).to(getattr(torch, dtype)).cuda()
    dense = logits_of(model, DynamicCache(config=model.config), ids, cuts)
    model.set_attn_implementation("pmkvq")
    found = logits_of(model, PackedCache(model, kv_dtype=kv_dtype), ids, cuts)
    assert found.dtype == getattr(torch, dtype)
    rounding = (dense.float() - expected).abs().mean()
    assert (found.float() - expected).abs().mean() < 1.5 * rounding, rounding


# Products of PyTorch and of the engine differ by 1e-6 of a value. Some queries and weights of attention are then rounded to
# another F16, so that keys and values of later blocks differ by about d = 1e-5 of their size. A group of b bits has 2^b - 1
# steps for some five times that size, so that a share f = d (2^b - 1) / 5 of codes is another one, by a step. Packing errs
# by 1 / sqrt(12) step in each code, so this is sqrt(12 f) of its effect: 1.9 % at 4 bits, 0.8 % at 2.
AS_PACKED: dict[str, Any] = {"least": 5e-4, "most": 1.0, "shares": (0.02, 0.1)}


# On the engine's side nothing of a prompt is attended by PyTorch.
def by_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PackedLayer, "_is_whole_prompt", lambda *_: False)


ENGINE_METHODS: list[tuple[str, dict[str, Any]]] = [
    ("fp16", {}),
    ("static-8", {}),
    ("static-4", {}),
    ("static-2", {}),
    ("pm-kvq", {"kv_budget": "500KiB"}),
]


@pytest.mark.parametrize(("kv", "options"), ENGINE_METHODS)
def test_equals_the_engine_on_the_device(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, kv: str, options: dict[str, Any]
) -> None:
    """With the prompt through our kernels, as in the engine, nothing but PyTorch's linear layers differs: see AS_PACKED."""
    model = tiny("qwen3", **HEADS)
    prompt, answer = random_ids(600).tolist()[0], random_ids(60, seed=2).tolist()[0]
    engine = in_engine(model, tmp_path, kv=kv, device="cuda", **options)
    cache = PackedCache(model, kv=kv, max_len=2048, **options)
    by_our_kernels(monkeypatch)
    compare_with_engine(model.cuda(), cache, engine, prompt, answer, **AS_PACKED)


@pytest.mark.parametrize(("kv", "options"), ENGINE_METHODS)
def test_one_block_equals_the_engine_however_the_prompt_is_attended(
    tmp_path: pathlib.Path, kv: str, options: dict[str, Any]
) -> None:
    """Keys and values of the first block do not depend on attention. So here PyTorch's attention to the prompt, which is
    more exact than ours (F16), changes nothing behind the prompt."""
    if "kv_budget" in options:
        options = {"kv_budget": "170KiB"}
    model = tiny("qwen3", num_hidden_layers=1, **HEADS)
    prompt, answer = random_ids(500).tolist()[0], random_ids(60, seed=2).tolist()[0]
    engine = in_engine(model, tmp_path, kv=kv, device="cuda", **options)
    cache = PackedCache(model, kv=kv, max_len=2048, **options)
    compare_with_engine(model.cuda(), cache, engine, prompt, answer, least=5e-4)


@pytest.mark.parametrize("nbits", [16, 8, 4, 2])
def test_a_prompt_by_pytorch_moves_few_codes_by_one(monkeypatch: pytest.MonkeyPatch, nbits: int) -> None:
    """Why logits are not the engine's to 1e-3 then: a hidden state that differs by the rounding of our attention to F16
    (2e-4) brings some values of later blocks to the next code. Nothing else differs, and this costs a fraction of what
    packing to so many bits costs."""
    model = tiny("qwen3", **HEADS).cuda()
    ids = random_ids(560)
    cuts = one_by_one(500, 560)
    exact = logits_of(model, DynamicCache(config=model.config), ids, cuts)[0, 500:]
    caches, logits = [], []
    for is_ours in (False, True):
        if is_ours:
            by_our_kernels(monkeypatch)
        caches.append(PackedCache(model, nbits=nbits, max_len=2048))
        logits.append(logits_of(model, caches[-1], ids, cuts)[0, 500:])
    moved = []
    for layer in range(3):
        for by_torch, by_us in zip(caches[0].read(layer), caches[1].read(layer), strict=True):
            closed = 512 - 128  # Pages that are packed in any case, behind the sink.
            a, b = by_torch[:, :, 1 : 1 + closed], by_us[:, :, 1 : 1 + closed]
            # The step of a group of a token's key or value, by its range; bounds of groups move by the rounding, too.
            step = (a.amax(-1, keepdim=True) - a.amin(-1, keepdim=True)) / (2**nbits - 1) if nbits < 16 else 0.0
            assert ((a - b).abs() <= 1.1 * step + 5e-3 * a.abs().amax()).all(), layer
            moved.append(float(((a - b).abs() > 0.5 * step + 1e-6).float().mean()))
    assert moved[0] == moved[1] == 0  # Of block 0.
    # A value is off by some 5e-4 of its size at most, and a group has some five times that size.
    assert 0 < max(moved) < min(1.0, 5e-4 * 2**nbits), moved
    error, effect = (logits[0] - logits[1]).abs().median(), (logits[1] - exact).abs().median()
    print(f"{nbits} bits: {max(moved[2:]):.2%} of codes moved; logits differ by {error:.1e}, from 16-bit floats by {effect:.1e}")
    assert error < (0.5 * effect if nbits < 8 else 5e-3 * exact.abs().max())


@pytest.mark.parametrize("nbits", [16, 8, 4, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_s_keys_on_the_device(tmp_path: pathlib.Path, recorded: Recorded, kind: str, nbits: int) -> None:
    """The engine's own keys and values, as the CPU computes them, into a cache on the CPU and one on the device. Both are
    packed alike, bit for bit, and the next token is attended as PyTorch attends to what both read."""
    model = tiny(kind, **HEADS)
    recorder = in_engine(model, tmp_path, kv="record", kv_dtype="f32")
    recorder.generate([random_ids(PROMPT).tolist()[0]], pmkvq.SamplingParams(temperature=0, max_tokens=1))
    cpu, cuda = PackedCache(model, nbits=nbits), PackedCache(model, nbits=nbits)
    dense = DynamicCache(config=model.config)
    model.set_attn_implementation("sdpa")  # Stores at once.
    for layer in range(3):
        cpu.update(*recorded[layer], layer)
        cuda.update(*(heads.cuda() for heads in recorded[layer]), layer)
        assert cpu._shared.native.packed_bytes(layer, 0) == cuda._shared.native.packed_bytes(layer, 0)
        dense.update(*cuda.read(layer), layer)
    model.cuda()
    logits = {}
    for name, attention, cache in (("packed", "pmkvq", cuda), ("dense", "sdpa", dense)):
        model.set_attn_implementation(attention)
        logits[name] = logits_of(model, cache, random_ids(1, seed=3), [])
    # Queries and weights are rounded to F16, 2^-11 at most: 2e-4 of a head's output and of what follows from it, in each
    # of three blocks, whose residual stream grows with what attention adds. Dequantised values are rounded, too.
    error = (logits["packed"] - logits["dense"]).abs().max()
    assert 0 < error < 3e-3 * logits["dense"].abs().max(), error


def test_plan_with_key_scales(tmp_path: pathlib.Path) -> None:
    """The shipped model with its plan: the CPU's text and pages."""
    ids = torch.tensor([pmkvq.Tokenizer(MODEL).encode_chat([{"role": "user", "content": PROBLEM}])])
    texts, stats = [], []
    for device in ("cpu", "cuda"):
        model: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="pmkvq")
        model = model.to(device)
        cache = PackedCache(model, plan=PLAN, kv_budget="1.5MiB")
        tokens = generate(model, ids.to(device), cache, max_new_tokens=330)
        texts.append(tokens.tolist())
        stats.append((cache.stats().bytes, cache.stats().pages))
    assert texts[0] == texts[1]
    assert stats[0] == stats[1]


def test_a_padded_row_is_the_row_alone() -> None:
    model = tiny("llama", **HEADS).cuda()
    lengths = [300, 7, 600]
    ids, mask = padded(lengths)
    cache = PackedCache(model, kv="static-4")
    together = generate(model, ids.cuda(), cache, attention_mask=mask.cuda())[:, 600:]
    assert cache.num_tokens() == [length + 39 for length in lengths]
    alone_bytes = 0
    for row, length in enumerate(lengths):
        alone = PackedCache(model, kv="static-4")
        tokens = generate(model, random_ids(length, seed=row + 1).cuda(), alone)[:, length:]
        assert torch.equal(tokens[0], together[row])
        alone_bytes += alone.nbytes
    assert cache.nbytes == alone_bytes


@pytest.mark.parametrize("attention", ["pmkvq", "sdpa"])
def test_beams_and_sliding_windows(attention: str) -> None:
    """Rows are reordered and share pages; pages outside of the window are freed."""
    cpu_model, cuda_model = on_both("mistral", attention, sliding_window=200)
    ids, mask = padded([500, 300])
    results = []
    for model, device in ((cpu_model, "cpu"), (cuda_model, "cuda")):
        cache = PackedCache(model, kv="fp16", max_len=2048)
        tokens = generate(model, ids.to(device), cache, attention_mask=mask.to(device), num_beams=3)
        results.append((tokens.tolist(), cache.stats().pages))
    assert results[0] == results[1]


def test_crop_copy_and_budget() -> None:
    model = tiny("qwen2", **HEADS).cuda()
    ids = random_ids(500)
    cache = PackedCache(model, max_len=2048, **PROGRESSIVE)
    first = logits_of(model, cache, ids, [400])
    twin = copy.deepcopy(cache)
    assert twin.nbytes == cache.nbytes
    twin.crop(-30)
    assert twin.num_tokens() == [470] and cache.num_tokens() == [500]
    again = logits_of(model, twin, ids[:, 470:], [])
    assert (again - first[:, 470:]).abs().median() < 0.05 * first.abs().max()
    stopped = PackedCache(model, kv="pm-kvq", kv_budget="300KiB", max_len=2048)
    criteria = [BudgetStop(stopped)]
    tokens = generate(model, random_ids(100).cuda(), stopped, stopping_criteria=criteria, max_new_tokens=1900)
    assert 100 < tokens.shape[1] < 1900
    with pytest.raises(pmkvq.KvBudgetExhausted):
        logits_of(model, stopped, random_ids(400), [])
    short = PackedCache(model, kv="fp16", max_len=300)
    with pytest.raises(pmkvq.KvBudgetExhausted, match="max_len"):
        logits_of(model, short, random_ids(700), [])


def test_a_step_that_ends_early_or_is_looked_at() -> None:
    """Room for a token is made in all blocks at once. What blocks do not get is taken back, whoever asks in between."""
    model = tiny("qwen3", **HEADS).cuda()
    ids = random_ids(400)
    cuts = one_by_one(380, 400)
    expected_cache = PackedCache(model, nbits=4)
    expected = logits_of(model, expected_cache, ids, cuts)
    cache = PackedCache(model, nbits=4)
    first = logits_of(model, cache, ids[:, :390], one_by_one(380, 390))
    what = {"do": "raise"}

    def look(*_: Any) -> None:
        if what["do"] == "raise":
            raise RuntimeError("no memory, say")
        assert cache.stats().bytes > 0 and cache.read(1)[0].shape[2] == cache._shared.layers[1].seen

    handle = model.model.layers[2].register_forward_pre_hook(look)
    for _ in range(2):
        what["do"] = "raise"
        with pytest.raises(RuntimeError, match="no memory"):
            logits_of(model, cache, ids[:, 390:391], [])
        what["do"] = "look"
        with pytest.raises(pmkvq.RequestFailed, match="390 are left"):
            logits_of(model, cache, ids[:, 390:391], [])
    rest = logits_of(model, cache, ids[:, 390:], one_by_one(1, 10))
    handle.remove()
    assert torch.equal(torch.cat([first, rest], dim=1), expected)
    for layer in range(3):
        found, wanted = (one._shared.native.packed_bytes(layer, 0) for one in (cache, expected_cache))
        assert found == wanted


@pytest.mark.parametrize("batch", [3, 70])
def test_rows_of_a_large_batch_are_the_rows_alone(batch: int) -> None:
    """A launch takes 64 rows."""
    model = tiny("llama", **HEADS).cuda()
    ids = random_ids(200, batch=batch)
    cuts = one_by_one(190, 200)
    cache = PackedCache(model, nbits=4, max_len=256)
    together = logits_of(model, cache, ids, cuts)
    for row in (0, batch - 1):
        alone = PackedCache(model, nbits=4, max_len=256)
        # PyTorch's products add up in another order for another number of rows.
        assert (logits_of(model, alone, ids[row : row + 1], cuts)[0, 190:] - together[row, 190:]).abs().median() < 1e-3
        assert alone.nbytes * batch == cache.nbytes


def test_another_stream() -> None:
    """Work is in the order of the stream that is current, whichever that is."""
    model = tiny("llama", **HEADS).cuda()
    ids = random_ids(270)
    cuts = one_by_one(240, 270)
    expected = logits_of(model, PackedCache(model, nbits=4), ids, cuts)
    cache = PackedCache(model, nbits=4)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    parts, begin = [], 0
    for index, end in enumerate([*cuts, 270]):
        stream = streams[index % 2]
        stream.wait_stream(streams[1 - index % 2])
        with torch.cuda.stream(stream):
            parts.append(logits_of(model, cache, ids[:, begin:end], []))
        begin = end
    assert torch.equal(torch.cat(parts, dim=1), expected)


def test_nothing_goes_through_the_host(tmp_path: pathlib.Path) -> None:
    """Copies between host and device in a step are tables and words of a few KiB, however long the cache is."""
    model = tiny("llama", max_position_embeddings=8192, **HEADS).cuda()
    cache = PackedCache(model, nbits=4, max_len=8192)
    with torch.no_grad():
        model(random_ids(6000).cuda(), **{CACHE: cache})
        token = random_ids(1).cuda()
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            model(token, **{CACHE: cache})
            torch.cuda.synchronize()
    trace = tmp_path / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    kernels = [event["name"] for event in events if event.get("cat") == "kernel"]
    if not kernels:
        pytest.skip("the profiler sees no kernels here")
    copies = [event for event in events if event.get("cat") == "gpu_memcpy"]
    through_host = sum(e["args"].get("bytes", 0) for e in copies if "HtoD" in e["name"] or "DtoH" in e["name"])
    # 6,000 tokens of a block take 750 KiB in float16.
    assert 0 < through_host < 64 << 10, sorted((e["name"], e["args"].get("bytes")) for e in copies)


def test_what_is_refused() -> None:
    model = tiny("llama", **HEADS).cuda()
    with pytest.raises(pmkvq.Unsupported, match="F32|f32"):
        logits_of(model, PackedCache(model, kv_dtype="f32"), random_ids(10), [])
    small = tiny("llama").cuda()
    with pytest.raises(pmkvq.Unsupported, match="heads of 32"):
        logits_of(small, PackedCache(small), random_ids(10), [])
    cache = PackedCache(model)
    logits_of(model, cache, random_ids(10), [])
    cpu = tiny("llama", **HEADS)
    with pytest.raises(pmkvq.Unsupported, match="cuda:0 as before"):
        logits_of(cpu, cache, random_ids(10), [])


def test_values_that_the_cache_cannot_hold() -> None:
    """Shows with the last block at the latest, and the cache goes on behind a reset."""
    model = tiny("llama", "sdpa", **HEADS).cuda()
    cache = PackedCache(model)
    huge = torch.full((1, 2, 3, 64), 1e6, device="cuda")
    with pytest.raises(pmkvq.InvalidInput, match="key"):
        for layer in range(3):
            cache.update(huge, huge, layer)
    cache.reset()
    assert logits_of(model, cache, random_ids(10), []).isfinite().all()
