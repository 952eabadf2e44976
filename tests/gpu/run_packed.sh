#!/usr/bin/env bash
# Runs packed tests (scripts/pack-gpu-tests.sh), and says for each suite how it ended.
#
# Usage: bash run-gpu-tests.sh [--sanitize]
# --sanitize: the small ones under compute-sanitizer, memcheck and racecheck.
# JOBS (8): suites at a time. LIMIT (300): seconds of each. OUT: a folder for logs. STRESS (20): seconds of the stress;
# others use the GPU meanwhile. PYTHON (python3): has torch with CUDA, transformers and pytest, for the tests of PackedCache.
# Exit: 0 where every suite passed.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_dir=@SOURCE_DIR@
build_dir=@BUILD_DIR@
logs=${OUT:-/tmp}/gpu-tests
mkdir -p "$source_dir" "$build_dir" "$logs"
tar xJf "$here/gpu-tests-programs.tar.xz" -C "$build_dir" || exit 1
tar xJf "$here/gpu-tests-data.tar.xz" -C "$source_dir" || exit 1
cublas=$(find /usr/local/cuda*/ /opt /usr/lib ${CUBLAS_PLACES:-} -name 'libcublasLt.so.13*' 2>/dev/null | head -n 1)
if [ -z "$cublas" ]; then
  echo "run-gpu-tests.sh: found no libcublasLt.so.13 in /usr/local/cuda*, /opt and /usr/lib; CUBLAS_PLACES names other folders" >&2
  exit 1
fi
libraries=$build_dir/lib:$(dirname "$cublas")
export PMKVQ_REQUIRE_GPU=1 OPENBLAS_NUM_THREADS=1
cd "$source_dir" || exit 1

# suite NAME COMMAND...: a line of what came of it.
suite() {
  local name=$1 begin=$SECONDS rc
  shift
  timeout -k 5 "${LIMIT:-300}" "$@" >"$logs/$name.log" 2>&1
  rc=$?
  local log=$logs/$name.log
  echo "$name: $([ $rc = 0 ] && echo passed || echo "FAILED, exit $rc"), $((SECONDS - begin)) s;" \
    "$(grep -cE '^\[ +OK \]' "$log") ok, $(grep -cE '^\[  FAILED  \] .*\(' "$log") failed" \
    "$(grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY|^[0-9]+ passed|^Ran |^OK' "$log" | tail -n 1)" | tee -a "$logs/suites.txt"
}
programs() { env LD_LIBRARY_PATH="$libraries" "$@"; }
gtest() { # NAME PROGRAM FILTER [SHARD OF]
  suite "$1" env LD_LIBRARY_PATH="$libraries" GTEST_SHARD_INDEX="${4:-0}" GTEST_TOTAL_SHARDS="${5:-1}" \
    "$build_dir/bin/$2" --gtest_filter="$3"
}
running=0
start() { # As many at a time as JOBS says.
  if [ "$running" -ge "${JOBS:-8}" ]; then
    wait -n
    running=$((running - 1))
  fi
  "$@" &
  running=$((running + 1))
}
: >"$logs/suites.txt"
if ! programs "$build_dir/bin/pmkvq_tensor_cuda_test" --gtest_filter='*QueryDescribesTheDevice' >"$logs/device.log" 2>&1; then
  grep -o 'found no CUDA device: .*' "$logs/device.log" | head -n 1 >&2 || tail -n 3 "$logs/device.log" >&2
  exit 1
fi
if [ "${1:-}" = --sanitize ]; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  for tool in memcheck racecheck; do
    for program in "$build_dir"/bin/pmkvq_*_cuda_test; do
      programs "$program" --gtest_list_tests --gtest_filter='*SmallTest*' 2>/dev/null | grep -q SmallTest || continue
      start suite "$tool-$(basename "$program" _cuda_test)" env LD_LIBRARY_PATH="$libraries" "$sanitizer" --tool "$tool" \
        --error-exitcode 9 "$program" --gtest_filter='*SmallTest*'
    done
  done
else
  PMKVQ_STRESS_SECONDS=${STRESS:-20} PMKVQ_STRESS_SHARED=1 PMKVQ_STRESS_JSON=$logs/stress.json \
    start gtest stress pmkvq_engine_cuda_test 'EngineStress*'
  # Several processes for programs of many tests; the longest first.
  for shard in 0 1 2 3; do start gtest "kernels-$shard" pmkvq_kernels_cuda_test '*' "$shard" 4; done
  for name in kv model engine; do
    for shard in 0 1; do start gtest "$name-$shard" "pmkvq_${name}_cuda_test" '-EngineStress*' "$shard" 2; done
  done
  for program in "$build_dir"/bin/pmkvq_*_cuda_test "$build_dir/bin/pmkvq_gpu_test"; do
    name=$(basename "$program" _test)
    name=${name#pmkvq_}
    case ${name%_cuda} in kernels | kv | model | engine) continue ;; esac
    start gtest "${name%_cuda}" "$(basename "$program")" '*'
  done
  for part in "pool Pool SmallPool" "prefix Prefix Keys Widths"; do
    read -r name classes <<<"$part"
    # shellcheck disable=SC2086
    start suite "serve-$name" env LD_LIBRARY_PATH="$libraries" python3 tests/gpu/on_cuda.py "$build_dir/bin/pmkvq" \
      "tests/server/${name}_test.py" models/longcot-10m $classes
  done
  if [ -d wheel ]; then
    "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --target wheel/site wheel/*.whl >"$logs/pip.log" 2>&1
    start suite python env PYTHONPATH="$source_dir/wheel/site" "${PYTHON:-python3}" -m pytest -q -rs -m cuda -p no:cacheprovider python/tests/hf
  fi
fi
wait
if grep -q FAILED "$logs/suites.txt"; then exit 1; fi
echo "all $(wc -l <"$logs/suites.txt") suites passed"
