#!/usr/bin/env bash
# Prints line coverage by module from the counters of a build folder, and fails below the floor.
# Usage: coverage-report.sh BUILD_FOLDER
set -euo pipefail
build=$1
status=0
for module in kv kernels research/calib text io base tensor model engine research; do
  line=$(gcovr --root . --object-directory "$build" --filter "src/pmkvq/$module/" \
    --exclude '.*_(test|bench)\.cc' --print-summary 2>/dev/null | grep '^lines:' || true)
  printf '%-10s %s\n' "$module" "${line:-no data}"
  case "$module" in
    kv | kernels | research/calib | text | io)
      percent=$(sed -E 's/^lines: ([0-9.]+)%.*/\1/' <<<"$line")
      if ! awk -v p="${percent:-0}" 'BEGIN { exit !(p >= 90) }'; then
        echo "  below 90 %" >&2
        status=1
      fi
      ;;
  esac
done
exit $status
