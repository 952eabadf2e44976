#!/usr/bin/env bash
# Builds library and program with every compiler that this release of Debian has, and for aarch64,
# where some tests run under qemu-user; then the library as libpmkvq.so. Prints one line a compiler; ends with 1 if one failed.
#
# Usage: scripts/ci-matrix.sh [COMPILER...]      COMPILER: gcc-12, clang-16, aarch64, shared
#   PMKVQ_MATRIX_JOBS=N   jobs of ninja (all processors)
#   PMKVQ_MATRIX_TESTS=1  the unit and golden tests, too, with each compiler
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/install-deps.sh build
# A compiler is tried with what its release has: flags of the environment would reach all of them.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
known() { apt-cache show "$1" >/dev/null 2>&1; }
install() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends \
    "$@" >/dev/null
}

compilers=("$@")
if [ ${#compilers[@]} -eq 0 ]; then
  "${as_root[@]}" apt-get update -qq
  for version in 11 12 13 14 15; do ! known "g++-$version" || compilers+=("gcc-$version"); done
  for version in 14 15 16 17 18 19; do ! known "clang-$version" || compilers+=("clang-$version"); done
  compilers+=(aarch64 shared)
fi

build_with() {  # NAME
  local name=$1 folder=build/matrix/$1 c cxx tests=OFF
  [ -z "${PMKVQ_MATRIX_TESTS:-}" ] || tests=ON
  case "$name" in
    gcc-*) cxx=g++-${name#gcc-} && install "$cxx" ;;
    clang-*) cxx=clang++-${name#clang-} && install "$name" ;;
    *)
      echo "ci-matrix.sh: unknown compiler '$name'; known: gcc-N, clang-N, aarch64, shared" >&2
      return 2
      ;;
  esac
  [ "$tests" = OFF ] || scripts/install-deps.sh build test
  cmake -S . -B "$folder" -G Ninja -Wno-dev -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_COMPILER=$cxx" \
    -DPMKVQ_WERROR=ON -DPMKVQ_BUILD_TESTS=$tests >/dev/null
  ninja -C "$folder" -j "${PMKVQ_MATRIX_JOBS:-$(nproc)}"
  "$folder/bin/pmkvq" --version
  "$folder/bin/pmkvq" run --model models/longcot-10m --temperature 0 \
    "Multiply 472 by 58 with column sums of digit products. What is the product?" | grep -q 'boxed{27376}'
  [ "$tests" = OFF ] || ctest --test-dir "$folder" -L 'unit|golden' -j "$(nproc)" --output-on-failure
}

build_shared() {
  local folder=build/matrix/shared
  cmake -S . -B "$folder" -G Ninja -Wno-dev -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DPMKVQ_WERROR=ON \
    -DPMKVQ_BUILD_PROGRAM=OFF -DPMKVQ_BUILD_TESTS=OFF -DPMKVQ_MPI=OFF >/dev/null
  ninja -C "$folder" -j "${PMKVQ_MATRIX_JOBS:-$(nproc)}" pmkvq_shared
  echo "compiler $(tests/consumer/shared.sh "$folder" .)"
}

failed=
for name in "${compilers[@]}"; do
  mkdir -p build/matrix
  log=build/matrix/$name.log
  run=(build_with "$name")
  [ "$name" != aarch64 ] || run=(scripts/build-aarch64.sh --test)
  [ "$name" != shared ] || run=(build_shared)
  # In a subshell, so that set -e holds inside of it.
  set +e
  (set -e; "${run[@]}") >"$log" 2>&1
  code=$?
  set -e
  if [ $code -eq 0 ]; then
    echo "$name: built and run; $(grep -m 1 '^compiler' "$log" | sed 's/^compiler *//')"
  else
    failed=1
    echo "$name: FAILED ($log)"
    grep -m 5 -E 'error|FAILED|E: ' "$log" || tail -n 5 "$log"
  fi
done
[ -z "$failed" ]
