#!/usr/bin/env python3
"""Decoding speed of Hugging Face transformers on a CUDA device, beside `pmkvq bench decode --device cuda`.

A model of the shape of Qwen2-7B with random BF16 weights, batches of prompts of random tokens, `generate` with the
default cache (DynamicCache) and, where its packages are installed, with 4-bit QuantizedCache. A row per batch and
depth: tokens/s of --new-tokens tokens behind the prompt, the time of the prompt taken off. Needs torch and transformers.

Usage: scripts/compare-transformers.py [--batch 1,8] [--depth 1024,8192] [--new-tokens 32] [--repeat 3]
"""
import argparse
import json
import statistics
import sys
import time

import torch
import transformers


def seconds_of(model, ids, new_tokens, cache):
    arguments = {} if cache is None else {"cache_implementation": "quantized", "cache_config": cache}
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                       do_sample=False, pad_token_id=0, **arguments)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(model, batch, depth, new_tokens, repeat, cache):
    ids = torch.randint(10, 1000, (batch, depth), device="cuda")
    times = []
    for i in range(repeat + 1):
        first = seconds_of(model, ids, 1, cache)
        whole = seconds_of(model, ids, new_tokens + 1, cache)
        if i > 0:
            times.append(batch * new_tokens / (whole - first))
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--depth", default="1024,8192")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    config = transformers.Qwen2Config(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                                      num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=65536)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.Qwen2ForCausalLM(config).eval()
    caches = {"DynamicCache bf16": None}
    for backend in ("hqq", "quanto"):
        caches[f"QuantizedCache 4 bits ({backend})"] = {"backend": backend, "nbits": 4}
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name(0)}")
    for batch in map(int, options.batch.split(",")):
        for depth in map(int, options.depth.split(",")):
            for name, cache in caches.items():
                try:
                    rate = measure(model, batch, depth, options.new_tokens, options.repeat, cache)
                except (ImportError, RuntimeError) as error:  # Not installed; or its extension does not compile.
                    print(f"{name}: does not run: {str(error).splitlines()[0]}", file=sys.stderr)
                    continue
                print(json.dumps({"cache": name, "batch": batch, "depth": depth, "tokens_per_s": round(rate, 1)}))


if __name__ == "__main__":
    main()
