#!/usr/bin/env python3
"""Decode attention beside PyTorch's on a CUDA device, in one run: `pmkvq bench attention --device cuda` at 16, 8, 4 and 2 bits,
and the fastest of torch's scaled_dot_product_attention back ends (flash, cuDNN, memory-efficient) on contiguous BF16 keys
and values, with the query heads of a KV head as rows of its query.

torch's calls are recorded in a CUDA graph over as many tensors as fill 400 MB, so that nothing comes from the second-level
cache, and replayed; both programs run one after the other, twice, and medians are taken. Needs torch.

Usage: scripts/compare-sdpa.py --pmkvq build/cuda/bin/pmkvq [--shape llama3-8b] [--batch 1,8,64] [--depth 4096,32768]
"""
import argparse
import json
import statistics
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = {"llama3-8b": (32, 8, 128), "qwen2-7b": (28, 4, 128)}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION}


def sdpa_us(backend, heads, kv_heads, dim, batch, depth, repeat):
    bytes_each = 2 * batch * kv_heads * depth * dim * 2
    count = max(2, -(-400_000_000 // bytes_each))
    q = torch.randn(batch, kv_heads, heads // kv_heads, dim, device="cuda", dtype=torch.bfloat16)
    kv = [torch.randn(2, batch, kv_heads, depth, dim, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
    attend = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(backend):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(2):
                attend(q, kv[0][0], kv[0][1])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for k, v in kv:
                attend(q, k, v)
    times = []
    for _ in range(repeat + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / count)
    return statistics.median(times[1:])


def best_sdpa(options, shape, batch, depth):
    best = None
    for name, backend in BACKENDS.items():
        try:
            us = sdpa_us(backend, *shape, batch, depth, options.repeat)
        except RuntimeError as error:
            print(f"torch, {name}, {batch} x {depth}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        finally:
            torch.cuda.empty_cache()
        if best is None or us < best[0]:
            best = us, name
    if best is None:
        sys.exit("compare-sdpa.py: no back end of torch's attention runs here")
    return best


def ours_us(options, batch, depth):
    command = [options.pmkvq, "bench", "attention", "--device", "cuda", "--shape", options.shape, "--batch", str(batch),
               "--depth", str(depth), "--repeat", str(options.repeat), "--json", "-"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {int(row["bits"]): row["us"] for row in result["rows"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pmkvq", required=True)
    parser.add_argument("--shape", default="llama3-8b", choices=SHAPES)
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--depth", default="4096,32768")
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}, {options.shape}; us, and how many times faster than torch")
    for batch in map(int, options.batch.split(",")):
        for depth in map(int, options.depth.split(",")):
            torch_times, our_times = [], []
            for _ in range(2):
                torch_times.append(best_sdpa(options, SHAPES[options.shape], batch, depth))
                our_times.append(ours_us(options, batch, depth))
            us, name = min(torch_times)
            cells = []
            for bits in (16, 8, 4, 2):
                ours = statistics.median(times[bits] for times in our_times)
                cells.append(f"{bits} bits {ours:.1f} ({us / ours:.2f})")
            print(f"{batch} x {depth}: torch {us:.1f} ({name}); " + ", ".join(cells), flush=True)


if __name__ == "__main__":
    main()
