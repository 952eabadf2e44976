#!/usr/bin/env bash
# Prints the folder of a CUDA toolkit, 13.0 or later: CUDA_HOME, that of nvcc in PATH,
# /usr/local/cuda, or the one that --install has put into ~/.cache/pmkvq from PyPI's wheels.
#
# Usage: scripts/find-cuda.sh [--install]
# --install gets the wheels where no toolkit is found; needs python3 with venv, no root. Without it,
# and without a toolkit, prints nothing and fails.
set -euo pipefail

least=13.0
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/pmkvq/cuda-$least

# The folder, if its nvcc is new enough.
take() {
  [ -x "$1/bin/nvcc" ] && [ -f "$1/include/cuda_runtime_api.h" ] || return 1
  local version
  version=$("$1/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  [ "$(printf '%s\n' "$least" "$version" | sort -V | head -n 1)" = "$least" ] || return 1
  echo "$1"
}

candidates=()
[ -z "${CUDA_HOME:-}" ] || candidates+=("$CUDA_HOME")
if nvcc=$(command -v nvcc); then candidates+=("$(dirname "$(dirname "$(readlink -f "$nvcc")")")"); fi
candidates+=(/usr/local/cuda)
for folder in "$wheels"/lib/python3*/site-packages/nvidia/cu*; do candidates+=("$folder"); done
for folder in "${candidates[@]}"; do
  if take "$folder"; then exit 0; fi
done

if [ "${1:-}" != --install ]; then
  echo "find-cuda.sh: found no CUDA toolkit $least or later; --install gets one from PyPI" >&2
  exit 1
fi
if ! python3 -m venv "$wheels" >&2; then
  echo "find-cuda.sh: python3 cannot make $wheels; on Debian: apt-get install python3-venv" >&2
  exit 1
fi
echo "installing nvcc and the CUDA runtime from PyPI into $wheels" >&2
"$wheels/bin/pip" install -q --disable-pip-version-check "nvidia-cuda-nvcc==$least.*" \
  "nvidia-cuda-crt==$least.*" "nvidia-nvvm==$least.*" "nvidia-cuda-runtime==$least.*" \
  "nvidia-cuda-cccl==$least.*" >&2
for folder in "$wheels"/lib/python3*/site-packages/nvidia/cu*; do
  # Where nvcc and CMake look for the runtime.
  ln -sfn lib "$folder/lib64"
  ln -sfn libcudart.so.13 "$folder/lib/libcudart.so"
  take "$folder"
done
