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

# The build folder and the tools are kept, so that only what changed is compiled. Interpreters share
# it: nearly all of it does not depend on them. The compiler is the program's, not the interpreter's.
export CC=${CC:-cc} CXX=${CXX:-c++}
rm -rf "$place/wheel"
"${pip[@]}" wheel . --no-deps --no-build-isolation --wheel-dir "$place/wheel" \
  -C build-dir=build/python -C cmake.define.PMKVQ_WERROR=ON
"${pip[@]}" install --force-reinstall --no-deps "$place"/wheel/*.whl

export PMKVQ_PROGRAM=$program
"$python" -m pytest -q "$@"
"$python" -m mypy --strict --cache-dir "$place/mypy" -p pmkvq
"$python" -m mypy --strict --cache-dir "$place/mypy" python/tests examples/python
