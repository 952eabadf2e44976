#!/usr/bin/env bash
# The tests of pmkvq.hf that want a GPU (mark cuda), with a wheel that has the CUDA backend. Left out, with one line that
# says so, where the interpreter has no torch with CUDA, no transformers or no pytest: they are gigabytes.
# Usage: scripts/test-python-cuda.sh [PYTEST ARGS]
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
interpreter=${PYTHON:-python3}
if ! problem=$("$interpreter" - 2>&1 <<'PY'
import pytest, transformers
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} sees no CUDA device")
PY
); then
  echo "test-python-cuda.sh: the tests of PackedCache on a GPU are left out: $interpreter: $(tail -n 1 <<<"$problem")"
  exit 0
fi
tools=$(scripts/python-tools.sh)
place=build/test-python/cuda
scripts/build-wheel.sh --cuda "$tools" "$place/wheel" -C cmake.define.PMKVQ_WERROR=ON
rm -rf "$place/site"
"$tools" -m pip --disable-pip-version-check --quiet install --no-deps --target "$place/site" "$place"/wheel/*.whl
PYTHONPATH=$PWD/$place/site exec "$interpreter" -m pytest -q -rs -m cuda python/tests/hf "$@"
