#!/usr/bin/env bash
# Runs every fuzz target of a build folder for a number of seconds each, starting from the seeds
# in tests/fuzz/corpus/<target without _fuzz> and from what earlier runs found (BUILD_FOLDER/corpus).
# Usage: fuzz-all.sh BUILD_FOLDER SECONDS. Exit code 1 when a target failed; its log is shown, the
# input that made it fail is kept in BUILD_FOLDER/findings.
set -euo pipefail
if [ $# -ne 2 ] || ! [[ $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: fuzz-all.sh BUILD_FOLDER SECONDS" >&2
  exit 2
fi
build=$1
seconds=$2
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

shopt -s nullglob
targets=("$build"/bin/*_fuzz)
if [ ${#targets[@]} -eq 0 ]; then
  echo "fuzz-all.sh: no fuzz target in $build/bin" >&2
  exit 1
fi

failed=()
for target in "${targets[@]}"; do
  name=$(basename "$target")
  corpus=$build/corpus/$name
  findings=$build/findings/$name
  log=$build/$name.log
  seeds=$source_dir/tests/fuzz/corpus/${name%_fuzz}
  mkdir -p "$corpus" "$findings"
  if [ ! -d "$seeds" ]; then
    echo "fuzz-all.sh: $name has no seeds in $seeds" >&2
    exit 1
  fi
  status=0
  "$target" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=65536 \
    -artifact_prefix="$findings/" -print_final_stats=1 "$corpus" "$seeds" >"$log" 2>&1 || status=$?
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  # The last status line: "#N DONE cov: C ft: F corp: ...".
  coverage=$(sed -n 's/^#[0-9]*[[:space:]]*DONE *cov: *\([0-9]*\).*/\1/p' "$log")
  if [ "$status" -eq 0 ] && [ -n "$executed" ]; then
    printf '%-24s %4s s  %9s inputs  %5s edges  no finding\n' \
      "$name" "$seconds" "$executed" "$coverage"
  else
    failed+=("$name")
    printf '%-24s FAILED, exit code %s\n' "$name" "$status"
    tail -n 60 "$log"
  fi
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "fuzz: failed: ${failed[*]}; inputs in $build/findings, logs in $build/*.log" >&2
  exit 1
fi
