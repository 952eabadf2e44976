"""Bytes, copies, threads."""
from __future__ import annotations

import copy
import gc
import sys
import threading
from typing import Any

import pytest
import torch
from tiny_models import HEAD_DIM, NUM_KV_HEADS, NUM_LAYERS, logits_of, random_ids, tiny

from pmkvq.hf import PackedCache
from pmkvq.hf._cache import _rows_of


def claimed(tokens: int, bits: int, sink: int = 1, window: int = 128, float_bytes: int = 2) -> int:
    """docs/formats.md: sink, closed pages of codes and metadata, 16-bit pages."""
    values = 128 * NUM_KV_HEADS * HEAD_DIM
    pages = -(-max(0, tokens - sink) // 128)
    wide = min(pages, window // 128)
    narrow_bytes = values * float_bytes if bits == 16 else values * bits // 8 + 128 * NUM_KV_HEADS * 2 * float_bytes
    one = wide * values * float_bytes + (pages - wide) * narrow_bytes
    return NUM_LAYERS * 2 * (sink * NUM_KV_HEADS * HEAD_DIM * float_bytes + one)


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
@pytest.mark.parametrize("tokens", [1, 129, 130, 700])
def test_bytes_are_those_of_the_format(bits: int, tokens: int) -> None:
    model = tiny("llama")
    cache = PackedCache(model, nbits=bits)
    logits_of(model, cache, random_ids(tokens), [])
    assert cache.nbytes == claimed(tokens, bits)
    assert cache.stats().bytes <= cache.stats().peak_bytes
    assert cache.stats().arena_bytes >= cache.nbytes


def test_residual_length_is_the_window() -> None:
    model = tiny("llama")
    for residual, window in ((0, 128), (1, 128), (128, 128), (129, 256), (300, 384)):
        cache = PackedCache(model, nbits=4, residual_length=residual)
        logits_of(model, cache, random_ids(900), [])
        assert cache.nbytes == claimed(900, 4, window=window)


def tensor_bytes() -> int:
    """Of all tensors that are alive, each storage once."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def arena_bytes_in_memory() -> int:
    """Of this process's large anonymous mappings."""
    total = 0
    with open("/proc/self/smaps") as file:
        for line in file:
            if line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


def test_no_tensor_of_the_cache_is_alive() -> None:
    """With "pmkvq" attention all that is kept are the pages: no tensor is left behind, and memory grows by
    what is claimed."""
    model = tiny("llama", max_position_embeddings=20000)
    ids = random_ids(16384)
    warm = PackedCache(model, nbits=4)
    logits_of(model, warm, ids[:, :600], [512])
    del warm
    before_tensors = tensor_bytes()
    cache = PackedCache(model, nbits=4)
    logits_of(model, cache, ids, list(range(512, 16384, 512)))
    assert tensor_bytes() - before_tensors < 4096
    assert cache.nbytes == claimed(16384, 4)
    held = arena_bytes_in_memory()
    stats = cache.stats()
    del cache
    released = held - arena_bytes_in_memory()
    # Memory comes in pages of 4 KiB and in extents of 16-bit pages, of which one per class may be partly used.
    assert 0.9 * stats.bytes < released < 1.05 * (stats.bytes + stats.scratch_bytes)


def test_a_cache_goes_with_its_last_reference() -> None:
    model = tiny("llama", max_position_embeddings=20000)
    cache = PackedCache(model, nbits=4)
    logits_of(model, cache, random_ids(4096), [])
    gc.disable()
    try:
        held = arena_bytes_in_memory()
        claimed_bytes = cache.nbytes
        del cache
        assert held - arena_bytes_in_memory() > 0.8 * claimed_bytes
    finally:
        gc.enable()


def test_new_keys_are_not_copied() -> None:
    """As models make them, heads are a transposed view, and a rotation keeps that order in memory."""
    made = torch.randn(2, 5, NUM_KV_HEADS, HEAD_DIM)
    assert _rows_of(made.transpose(1, 2)).data_ptr() == made.data_ptr()
    rotated = made.transpose(1, 2) * torch.randn(1, 1, 5, HEAD_DIM)
    assert _rows_of(rotated).data_ptr() == rotated.data_ptr()


def test_a_copy_shares_nothing() -> None:
    model = tiny("llama")
    cache = PackedCache(model, nbits=8)
    logits_of(model, cache, random_ids(300), [])
    copied = copy.deepcopy(cache)
    before = [tensor.clone() for tensor in cache.read(1)]
    copied.crop(-250)
    logits_of(model, copied, random_ids(400, seed=8), [])
    assert all(torch.equal(now, then) for now, then in zip(cache.read(1), before, strict=True))
    del cache
    assert copied.num_tokens() == [450]


def test_other_threads_run_while_it_attends() -> None:
    model = tiny("llama", max_position_embeddings=20000)
    cache = PackedCache(model)
    keys = torch.randn(1, NUM_KV_HEADS, 6000, HEAD_DIM)
    query = torch.randn(1, 4, 6000, HEAD_DIM)
    layer: Any = cache.layers[0]
    begun, ended = threading.Event(), []

    def attend() -> None:
        pending, values = layer.update(keys, keys)
        begun.set()
        layer.attend(query, keys, values, None, 1.0, None)
        ended.append(True)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # Threads give up the GIL only where they release it.
    try:
        thread = threading.Thread(target=attend, daemon=True)
        thread.start()
        begun.wait()
        assert not ended
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert ended
