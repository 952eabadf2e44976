#!/usr/bin/env bash
# Installs llama.cpp's npm package, writes the synthetic model, and measures; README.md says what.
# All options are those of compare.mjs: ./run.sh --help.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$here/../../build/peers
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
  case ${args[i]} in
    --out) out=${args[i + 1]:-} ;;
    --out=*) out=${args[i]#--out=} ;;
    -h | --help) exec node "$here/compare.mjs" --help ;;
  esac
done
if [[ -z $out ]]; then
  echo "--out: a folder is missing" >&2
  exit 2
fi
for tool in node npm; do
  if ! command -v "$tool" >/dev/null; then
    echo "[run.sh] $tool is missing; Node 20 or newer is needed" >&2
    exit 1
  fi
done

# Packages go to OUT, so that this folder stays as it is. Without the optional ones (binaries for
# GPUs and other systems) they take 60 MB.
mkdir -p "$out"
out=$(cd "$out" && pwd)
installed=$out/installed-lock.json
if ! cmp -s "$here/package-lock.json" "$installed"; then
  cp "$here/package.json" "$here/package-lock.json" "$out/"
  # Not `npm ci`: that wants every other system's binaries in the lock file, too.
  npm install --prefix "$out" --omit=optional --ignore-scripts --no-save --no-audit --no-fund >&2
  cp "$here/package-lock.json" "$installed"
fi
exec node "$here/compare.mjs" "$@"
