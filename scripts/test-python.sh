#!/usr/bin/env bash
# The Python package: a wheel from this tree, installed into a virtual environment below
# build/test-python, its tests (with the program beside it), types and examples.
# Usage: scripts/test-python.sh PROGRAM [PYTEST ARGS]
# PYTHON names another interpreter than python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
program=$(realpath "$1")
shift

interpreter=${PYTHON:-python3}
tag=$("$interpreter" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
place=build/test-python/$tag
if [ ! -x "$place/venv/bin/python" ]; then "$interpreter" -m venv "$place/venv"; fi
python=$place/venv/bin/python
pip=("$python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install -r python/tests/requirements.txt

scripts/build-wheel.sh "$python" "$place/wheel" -C cmake.define.PMKVQ_WERROR=ON
"${pip[@]}" install --force-reinstall --no-deps "$place"/wheel/*.whl

export PMKVQ_PROGRAM=$program
# PyTorch's threads that wait for each other sleep. Where other work takes the processors, spinning ones made
# the tests of hf more than ten times as long.
export OMP_WAIT_POLICY=passive
# pytest exits with 5 where its arguments select no test of a part.
"$python" -m pytest -q -m "not lm_eval" --ignore python/tests/hf "$@" || [ $? -eq 5 ]

# PyTorch's CPU build where pip finds it: on disk, or with PyTorch's index of CPU builds in
# PIP_EXTRA_INDEX_URL. That build needs no other wheel. PyPI's needs NVIDIA's, several GB, and does not import without.
torch_version=2.13.0
if ! "$python" -c "import torch" 2>/dev/null; then
  "${pip[@]}" install filelock fsspec jinja2 networkx setuptools sympy typing-extensions
  "${pip[@]}" install --no-deps "torch==$torch_version"
  "$python" -c "import torch" 2>/dev/null || "${pip[@]}" install "torch==$torch_version"
fi
"${pip[@]}" install -r python/tests/hf/requirements.txt
"$python" -m pytest -q python/tests/hf "$@" || [ $? -eq 5 ]

# lm-eval, with transformers as one of its models.
"${pip[@]}" install -r python/tests/requirements-lm-eval.txt
"$python" -m pytest -q -m lm_eval "$@" || [ $? -eq 5 ]
"$python" -m mypy --strict --cache-dir "$place/mypy" -p pmkvq
"$python" -m mypy --strict --cache-dir "$place/mypy" python/tests examples/python
