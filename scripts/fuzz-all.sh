#!/usr/bin/env bash
# Runs every fuzz target of a build folder for a number of seconds each, starting from the seeds
# in tests/fuzz/corpus/<target>. Usage: fuzz-all.sh BUILD_FOLDER SECONDS
set -euo pipefail
build=$1
seconds=$2
found=0
for target in "$build"/bin/*_fuzz; do
  name=$(basename "$target")
  corpus="$build/corpus/$name"
  mkdir -p "$corpus"
  seeds="tests/fuzz/corpus/${name%_fuzz}"
  [ -d "$seeds" ] || seeds=
  echo "== $name, $seconds s"
  "$target" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20 -max_len=65536 \
    -artifact_prefix="$build/$name-" -print_final_stats=1 "$corpus" $seeds 2>&1 |
    grep -E 'ERROR|SUMMARY|stat::number_of_executed_units|Test unit written' || true
  if compgen -G "$build/$name-*" >/dev/null; then found=1; fi
done
if [ "$found" -ne 0 ]; then
  echo "findings were written to $build/" >&2
  exit 1
fi
echo "no findings"
