#!/usr/bin/env python3
"""Compiles the kernels of decoding for sm_90 and checks that no register of theirs is spilled to memory.

Usage: cuda_spills.py SOURCE_ROOT NVCC. A kernel with some hundred bytes of spills was 13 to 35 % slower.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-arch=sm_90", "-Xptxas=-v", "-c"]
SOURCES = ("src/pmkvq/kernels/attention/*_d*_cuda.cu", "src/pmkvq/kernels/attention/*_float_*_cuda.cu",
           "src/pmkvq/kernels/attention/latent_*_cuda.cu", "src/pmkvq/kernels/gemm/device_gemm_few_cuda.cu",
           "src/pmkvq/kernels/routing/device_experts_cuda.cu")
USE = re.compile(r"Compiling entry function '(\S+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
                 r"Used (\d+) registers", re.DOTALL)


def compile_source(root: pathlib.Path, nvcc: str, source: pathlib.Path, folder: str) -> subprocess.CompletedProcess:
    return subprocess.run([nvcc, *FLAGS, "-I", str(root / "src"), str(source), "-o", f"{folder}/{source.name}.o"],
                          capture_output=True, text=True, check=False)


def main() -> int:
    root, nvcc = pathlib.Path(sys.argv[1]), sys.argv[2]
    errors, kernels = [], 0
    sources = sorted(path for pattern in SOURCES for path in root.glob(pattern))
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, result in zip(sources, pool.map(lambda path: compile_source(root, nvcc, path, folder), sources)):
            if result.returncode != 0:
                errors.append(f"{source.name}: {result.stderr.strip()}")
            for name, stores, loads, registers in USE.findall(result.stdout + result.stderr):
                kernels += 1
                print(f"{source.name}: {registers} registers, {stores} + {loads} bytes of spills, {name}")
                if int(stores) or int(loads):
                    errors.append(f"{source.name}: {name} spills {stores} + {loads} bytes, expected 0")
    if kernels == 0:
        errors.append("found no kernel in the compiler's output")
    print("\n".join(errors))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
