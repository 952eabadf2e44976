#!/usr/bin/env bash
# Solves the 200 held-out problems of levels 1 to 5 (8 per task and level) greedily with every cache
# setting of docs/accuracy.md, and writes one JSON file per setting. Finished ones are skipped.
#
# Usage: scripts/accuracy.sh PMKVQ_PROGRAM OUT_FOLDER [JOBS [THREADS_PER_JOB]]
# About 5 minutes per setting on 2 cores. Then: tools/render_accuracy.py OUT_FOLDER > docs/accuracy.md
set -euo pipefail
program=$1
out=$2
jobs=${3:-1}
threads=${4:-2}
model=models/longcot-10m
mkdir -p "$out"

# The shipped plan averages 2.5 bits; its measurements also give one of 3 bits and, with K and V
# apart, one of the bytes of the former.
"$program" calibrate --from $model/plan.json --memory-budget 5.48 --max-len 4096 \
  --plan "$out/plan-3bit.json" 2>/dev/null
"$program" calibrate --from $model/plan.json --memory-budget 4.76 --max-len 4096 --separate-kv \
  --plan "$out/plan-split.json" 2>/dev/null

run() { # NAME, then the options of pmkvq eval
  local name=$1
  shift
  [ ! -s "$out/$name.json" ] || return 0
  "$program" eval --model $model --data $model/problems.jsonl --per-cell 8 --max-level 5 \
    --max-len 4096 --batch 16 --threads "$threads" "$@" --json "$out/$name.json" >/dev/null 2>&1 ||
    echo "accuracy.sh: $name failed" >&2
}
throttle() { while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done; }

while read -r name options; do
  throttle
  # shellcheck disable=SC2086
  run "$name" $options &
done <<EOF
00-fp16 --kv fp16
10-pm-kvq-4bit --kv pm-kvq:bits=4
20-plan-3bit --kv pm-kvq --plan $out/plan-3bit.json
21-plan-3bit-oldest-first --kv pm-kvq --plan $out/plan-3bit.json --policy oldest-first
30-plan-2.5bit --kv pm-kvq --plan $model/plan.json
31-plan-2.5bit-oldest-first --kv pm-kvq --plan $model/plan.json --policy oldest-first
32-plan-2.5bit-split --kv pm-kvq --plan $out/plan-split.json
33-plan-2.5bit-split-oldest-first --kv pm-kvq --plan $out/plan-split.json --policy oldest-first
40-pm-kvq-2bit --kv pm-kvq:bits=2
41-pm-kvq-2bit-oldest-first --kv pm-kvq:bits=2 --policy oldest-first
42-pm-kvq-2bit-scales --kv pm-kvq:bits=2 --plan $model/plan.json
50-static-4bit --kv static-4
60-static-2bit --kv static-2
EOF
wait
