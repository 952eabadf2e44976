#!/usr/bin/env python3
"""transformers' generate, on the CPU or a CUDA device, with pmkvq.hf.PackedCache and with other caches, side by side in one run.

A Llama model of random weights, by default four blocks with the attention of Qwen1.5-0.5B (16 heads and KV heads of 64), a
small MLP (--inner 2816 is that model's) and a small vocabulary; one prompt, greedy, up to 8192 tokens. Each round runs all caches in turn; medians are printed, and the ratio of PackedCache to QuantizedCache.
`cpu` is the processor time of generate. `held` is what the process gives back to the system when the cache is deleted; `claimed` is PackedCache.stats() (pages and
scratch), for the others the bytes of the tensors that they hold. On a device, where a PackedCache takes its whole arena at
once, `claimed` is arena and scratch, and `held` is memory of the device.
Exits with 1 where generate is less than --least-speedup times as fast as with QuantizedCache, or where PackedCache holds
more than --most-memory times what it claims.

Usage: scripts/compare-hf-cache.py [--prompt 6144] [--new-tokens 2048] [--layers 4] [--bits 4] [--backend quanto|hqq|none] [--dynamic] [--no-cudnn] [--device cpu|cuda] [--dtype float32|bfloat16|float16]
"""
import argparse
import ctypes
import gc
import json
import statistics
import sys
import time

import torch
import transformers

import pmkvq.hf


def bytes_in_memory(device):
    """Resident bytes, after the allocator gave back what it does not need; of the device where that is no CPU."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return total - free
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def tensors_of(thing, seen):
    """Storages of all tensors that a cache holds, those inside of quantised tensors too."""
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, torch.Tensor):
        inner = [value for value in vars(thing).values()] if type(thing) is not torch.Tensor else []
        if not any(isinstance(value, torch.Tensor) for value in inner):
            storage = thing.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
        for value in inner:
            yield from tensors_of(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_of(value, seen)
    elif isinstance(thing, dict):
        yield from tensors_of(list(thing.values()), seen)
    elif type(thing).__module__.split(".")[0] in ("transformers", "optimum", "hqq"):
        yield from tensors_of(getattr(thing, "__dict__", {}), seen)


def claimed_bytes(cache):
    if isinstance(cache, pmkvq.hf.PackedCache):
        stats = cache.stats()
        on_device = cache.layers[0]._shared.device.type == "cuda"
        return (stats.arena_bytes if on_device else stats.bytes) + stats.scratch_bytes
    return sum(dict(tensors_of(cache.layers, {})).values())


class Clock(transformers.StoppingCriteria):
    """When each token was drawn, and was known to the host."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **_):
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def measure(model, ids, new_tokens, attention, make_cache):
    model.set_attn_implementation(attention)
    clock = Clock()
    cache = make_cache()
    start, cpu_start = time.perf_counter(), time.process_time()
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=False,
                            max_new_tokens=new_tokens, min_new_tokens=new_tokens, stopping_criteria=[clock],
                            pad_token_id=0)
    end, cpu_end = time.perf_counter(), time.process_time()
    scratch = cache.stats().scratch_bytes if isinstance(cache, pmkvq.hf.PackedCache) else 0
    claimed = claimed_bytes(cache)
    with_cache = bytes_in_memory(model.device)
    del cache
    return {
        "generate_s": end - start,
        "cpu_s": cpu_end - cpu_start,
        "prompt_s": clock.times[0] - start,
        "token_ms": 1e3 * statistics.median(b - a for a, b in zip(clock.times, clock.times[1:])),
        "claimed_mb": claimed / 1e6,
        "scratch_mb": scratch / 1e6,
        "held_mb": (with_cache - bytes_in_memory(model.device)) / 1e6,
        "tokens": tokens[0, ids.shape[1]:].tolist(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=6144)
    parser.add_argument("--new-tokens", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--inner", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=2000)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--backend", default="quanto", choices=["quanto", "hqq", "none"])
    parser.add_argument("--dynamic", action="store_true", help="DynamicCache, too")
    parser.add_argument("--no-cudnn", action="store_true",
                        help="PyTorch's attention without cuDNN, which plans anew for each new length of the keys")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--least-speedup", type=float, default=3.0)
    parser.add_argument("--most-memory", type=float, default=1.05)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()

    config = transformers.LlamaConfig(
        vocab_size=arguments.vocab, hidden_size=arguments.heads * arguments.head_dim, intermediate_size=arguments.inner,
        num_hidden_layers=arguments.layers, num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.kv_heads, head_dim=arguments.head_dim,
        max_position_embeddings=arguments.prompt + arguments.new_tokens, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(1)
    if arguments.no_cudnn:
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    with torch.device(arguments.device):
        model = transformers.LlamaForCausalLM(config).eval()
        ids = torch.randint(1, arguments.vocab, (1, arguments.prompt))
    packed = f"PackedCache {arguments.bits} bits"
    caches = {packed: ("pmkvq", lambda: pmkvq.hf.PackedCache(model, nbits=arguments.bits))}
    quantized = None
    if arguments.backend != "none":
        quantized = f"QuantizedCache {arguments.backend} {arguments.bits} bits"
        caches[quantized] = ("sdpa", lambda: transformers.QuantizedCache(
            arguments.backend, config, nbits=arguments.bits, **({"axis_key": 1, "axis_value": 1} if arguments.backend == "hqq" else {})))
    if arguments.dynamic:
        caches["DynamicCache"] = ("sdpa", lambda: transformers.DynamicCache(config=config))
    for attention, make_cache in caches.values():  # What is compiled, loaded or allocated once.
        measure(model, ids[:, :300], 4, attention, make_cache)

    results = {name: [] for name in caches}
    for _ in range(arguments.rounds):
        for name, (attention, make_cache) in caches.items():
            results[name].append(measure(model, ids, arguments.new_tokens, attention, make_cache))
    figures = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "tokens"}
        for name, runs in results.items()
    }
    print(f"{arguments.layers} blocks, {arguments.heads} / {arguments.kv_heads} heads of {arguments.head_dim}, prompt "
          f"{arguments.prompt}, {arguments.new_tokens} new tokens, {arguments.dtype}{', no cuDNN' if arguments.no_cudnn else ''}, "
          f"{torch.cuda.get_device_name() if model.device.type == 'cuda' else f'{torch.get_num_threads()} threads'}, torch "
          f"{torch.__version__}, transformers {transformers.__version__}")
    print(f"{'cache':32} {'generate s':>10} {'cpu s':>7} {'prompt s':>9} {'token ms':>9} {'claimed MB':>10} {'scratch MB':>10} "
          f"{'held MB':>8}")
    for name, row in figures.items():
        print(f"{name:32} {row['generate_s']:10.2f} {row['cpu_s']:7.2f} {row['prompt_s']:9.2f} {row['token_ms']:9.2f} "
              f"{row['claimed_mb']:10.2f} {row['scratch_mb']:10.2f} {row['held_mb']:8.2f}")

    memory = figures[packed]["held_mb"] / figures[packed]["claimed_mb"]
    verdict = {"held_to_claimed": memory}
    print(f"PackedCache holds {memory:.3f} times what it claims (most: {arguments.most_memory})")
    good = memory <= arguments.most_memory
    if quantized is not None:
        speedup = figures[quantized]["generate_s"] / figures[packed]["generate_s"]
        token_speedup = figures[quantized]["token_ms"] / figures[packed]["token_ms"]
        verdict |= {"generate_speedup": speedup, "token_speedup": token_speedup}
        print(f"{quantized} takes {speedup:.2f} times as long for generate (least: {arguments.least_speedup}), "
              f"{token_speedup:.2f} times a token, {figures[quantized]['cpu_s'] / figures[packed]['cpu_s']:.2f} times the "
              "processor time")
        good &= speedup >= arguments.least_speedup
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"settings": vars(arguments), "caches": figures} | verdict, file, indent=1)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
