#!/usr/bin/env python3
"""Runs a test of the server, or classes of one, with --device cuda. Exit 77 where there is no device, or 1 with
PMKVQ_REQUIRE_GPU.

Usage: on_cuda.py PROGRAM TEST.py MODEL [CLASS ...]
"""
import os
import pathlib
import subprocess
import sys
import tempfile

SKIPPED = 77


def main() -> int:
    program, test, model, *classes = sys.argv[1:]
    devices = subprocess.run([program, "devices"], capture_output=True, text=True, check=False)
    if "cuda:0" not in devices.stdout:
        print(f"found no CUDA device: {devices.stdout}{devices.stderr}")
        return 1 if "PMKVQ_REQUIRE_GPU" in os.environ else SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        wrapper = pathlib.Path(folder) / "pmkvq"
        wrapper.write_text(f'#!/bin/sh\n[ "$1" = serve ] && exec {program} "$@" --device cuda\nexec {program} "$@"\n',
                           encoding="utf-8")
        wrapper.chmod(0o755)
        return subprocess.run([sys.executable, test, str(wrapper), model, *classes], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
