#!/usr/bin/env bash
# Packs the tests that want a GPU, for a machine that has one and no build: programs, the libraries that they need (not
# cuBLASLt, which is large and comes with CUDA or PyTorch), models and fixtures.
#
# Usage: scripts/pack-gpu-tests.sh BUILD_FOLDER OUT_FOLDER [WHEEL]
#   BUILD_FOLDER  of ./run test-gpu, or of the preset cuda with the target gpu_tests
#   WHEEL         of the Python extension with CUDA (scripts/build-wheel.sh --cuda): its tests are packed, too
# There, with all files of OUT_FOLDER in one folder: bash run-gpu-tests.sh [--sanitize]. It unpacks to the paths of this
# machine, since programs know them: /home/me/pmkvq here means /home/me/pmkvq there.
set -euo pipefail
if [ $# -lt 2 ] || [ ! -f "$1/CMakeCache.txt" ]; then
  echo "usage: scripts/pack-gpu-tests.sh BUILD_FOLDER OUT_FOLDER [WHEEL]; BUILD_FOLDER has a CMakeCache.txt" >&2
  exit 2
fi
build=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
wheel=${3:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source_dir=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt")
build_dir=$(sed -n 's/^CMAKE_CACHEFILE_DIR:INTERNAL=//p' "$build/CMakeCache.txt")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

mkdir -p "$place/programs/bin" "$place/programs/lib"
programs=("$build"/bin/pmkvq_*_cuda_test "$build/bin/pmkvq_gpu_test" "$build/bin/pmkvq")
for program in "${programs[@]}"; do
  if [ ! -x "$program" ]; then
    echo "pack-gpu-tests.sh: $program is missing; build the target gpu_tests first" >&2
    exit 1
  fi
  strip -o "$place/programs/bin/$(basename "$program")" "$program"
done
ldd "${programs[@]}" | awk '$3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|librt|libdl|libpthread)\.so|libcublas' | xargs cp -L -t "$place/programs/lib"

mkdir -p "$place/data"
tar c --exclude=__pycache__ --exclude=build tests/golden tests/gpu tests/server models/longcot-10m \
  python/tests pyproject.toml | tar x -C "$place/data"
if [ -n "$wheel" ]; then
  mkdir "$place/data/wheel"
  cp "$wheel" "$place/data/wheel/"
fi

# Programs are much alike: with a window that holds them all they take little more than one of them.
pack() { tar c -C "$place/$1" . | xz -T1 "--lzma2=preset=${PMKVQ_PACK_PRESET:-5},dict=192MiB" >"$out/gpu-tests-$1.tar.xz"; }
pack programs
pack data
sed -e "s#@SOURCE_DIR@#$source_dir#; s#@BUILD_DIR@#$build_dir#" tests/gpu/run_packed.sh >"$out/run-gpu-tests.sh"
ls -l "$out"/*gpu-tests*
