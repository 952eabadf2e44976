#!/usr/bin/env bash
# Prints the folder of a CUDA toolkit, 13.0 or later: CUDA_HOME, that of nvcc in PATH,
# /usr/local/cuda, or the one that --install has put into ~/.cache/pmkvq from PyPI's wheels.
#
# Usage: scripts/find-cuda.sh [--install] [--cublas]
# --install gets the wheels of what is missing, the toolkit or cuBLAS; needs python3 with venv, no
# root. --cublas prints the folder that has cuBLASLt, for CMake's PMKVQ_CUBLAS_ROOT: the toolkit, or
# that of PyPI's wheel nvidia-cublas, also among the packages of python3. Where there is nothing to
# print, fails.
set -euo pipefail

least=13.0
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/pmkvq/cuda-$least
install=
wanted=toolkit
for option in "$@"; do
  case "$option" in
    --install) install=1 ;;
    --cublas) wanted=cublas ;;
    *)
      echo "find-cuda.sh: found option $option, expected --install or --cublas" >&2
      exit 2
      ;;
  esac
done

# Whether its nvcc is new enough.
is_toolkit() {
  [ -x "$1/bin/nvcc" ] && [ -f "$1/include/cuda_runtime_api.h" ] || return 1
  local version
  version=$("$1/bin/nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  [ "$(printf '%s\n' "$least" "$version" | sort -V | head -n 1)" = "$least" ]
}

is_cublas() {
  [ -f "$1/include/cublasLt.h" ] || return 1
  compgen -G "$1/lib*/libcublasLt.so*" >/dev/null || compgen -G "$1/lib/*/libcublasLt.so*" >/dev/null
}

# The first folder that has it.
find_toolkit() {
  local folder nvcc
  local candidates=()
  [ -z "${CUDA_HOME:-}" ] || candidates+=("$CUDA_HOME")
  if nvcc=$(command -v nvcc); then candidates+=("$(dirname "$(dirname "$(readlink -f "$nvcc")")")"); fi
  candidates+=(/usr/local/cuda)
  for folder in "$wheels"/lib/python3*/site-packages/nvidia/cu*; do candidates+=("$folder"); done
  for folder in "${candidates[@]}"; do
    if is_toolkit "$folder"; then
      echo "$folder"
      return 0
    fi
  done
  return 1
}

find_cublas() {
  local folder
  for folder in "$toolkit" "$wheels"/lib/python3*/site-packages/nvidia/cu*; do
    if is_cublas "$folder"; then
      echo "$folder"
      return 0
    fi
  done
  while read -r folder; do
    if is_cublas "$folder"; then
      echo "$folder"
      return 0
    fi
  done < <(python3 -c 'import sys; print(*(p + "/nvidia/cu13" for p in sys.path if p), sep="\n")' 2>/dev/null)
  return 1
}

install_wheels() {
  if [ ! -x "$wheels/bin/pip" ] && ! python3 -m venv "$wheels" >&2; then
    echo "find-cuda.sh: python3 cannot make $wheels; on Debian: apt-get install python3-venv" >&2
    exit 1
  fi
  echo "installing $1 from PyPI into $wheels" >&2
  "$wheels/bin/pip" install -q --disable-pip-version-check "${@:2}" >&2
}

if ! toolkit=$(find_toolkit); then
  if [ -z "$install" ]; then
    echo "find-cuda.sh: found no CUDA toolkit $least or later; --install gets one from PyPI" >&2
    exit 1
  fi
  install_wheels "nvcc and the CUDA runtime" "nvidia-cuda-nvcc==$least.*" \
    "nvidia-cuda-crt==$least.*" "nvidia-nvvm==$least.*" "nvidia-cuda-runtime==$least.*" \
    "nvidia-cuda-cccl==$least.*"
  for folder in "$wheels"/lib/python3*/site-packages/nvidia/cu*; do
    # Where nvcc and CMake look for the runtime.
    ln -sfn lib "$folder/lib64"
    ln -sfn libcudart.so.13 "$folder/lib/libcudart.so"
  done
  toolkit=$(find_toolkit)
fi

if ! cublas=$(find_cublas); then
  if [ -n "$install" ]; then
    install_wheels "cuBLAS (421 MB)" "nvidia-cublas==$least.*"
    cublas=$(find_cublas)
  elif [ "$wanted" = cublas ]; then
    echo "find-cuda.sh: found no cuBLASLt beside $toolkit; --install gets it from PyPI" >&2
    exit 1
  fi
fi
if [ "$wanted" = cublas ]; then echo "$cublas"; else echo "$toolkit"; fi
