#!/usr/bin/env bash
# Runs the tests that want a GPU (label gpu) of a build with CUDA; fails where there is no GPU.
#
# Usage: scripts/test-gpu.sh BUILD_FOLDER [--sanitize]
# --sanitize: the small ones (suites *SmallTest) under compute-sanitizer, memcheck and racecheck.
set -euo pipefail
build=$1
export PMKVQ_REQUIRE_GPU=1

# One line instead of a failure of each test.
if ! first=$("$build/bin/pmkvq_tensor_cuda_test" --gtest_filter='*QueryDescribesTheDevice' 2>&1); then
  grep -o 'found no CUDA device: .*' <<<"$first" | head -n 1 >&2 || echo "$first" >&2
  exit 1
fi
if [ "${2:-}" != --sanitize ]; then
  exec ctest --test-dir "$build" -L gpu --output-on-failure --no-tests=error --parallel 8
fi
sanitizer=$(command -v compute-sanitizer || true)
if [ -z "$sanitizer" ]; then
  sanitizer=$("$(dirname "$0")/find-cuda.sh")/bin/compute-sanitizer
fi
if [ ! -x "$sanitizer" ]; then
  echo "test-gpu.sh: found no compute-sanitizer in PATH or beside nvcc; it is part of the CUDA toolkit" >&2
  exit 1
fi
for tool in memcheck racecheck; do
  for program in "$build"/bin/pmkvq_*_cuda_test; do
    if ! "$program" --gtest_list_tests --gtest_filter='*SmallTest*' | grep -q SmallTest; then continue; fi
    echo "$tool $(basename "$program")"
    "$sanitizer" --tool "$tool" --error-exitcode 1 "$program" --gtest_filter='*SmallTest*' \
      --gtest_brief=1
  done
done
