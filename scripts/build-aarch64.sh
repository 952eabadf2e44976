#!/usr/bin/env bash
# Cross-builds for aarch64 in build/aarch64 (preset aarch64) with Debian's compiler and libraries of
# that architecture; --test runs tests of kernels and caches and the program under qemu-user.
#
# Usage: scripts/build-aarch64.sh [--test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Flags of the environment are the machine's (a linker that only it has), not the other architecture's.
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
if ! dpkg --print-foreign-architectures | grep -qx arm64; then
  "${as_root[@]}" dpkg --add-architecture arm64
  "${as_root[@]}" apt-get update -qq
fi
boost=libboost-dev
[ "$(. /etc/os-release && echo "$ID$VERSION_ID")" != debian12 ] || boost=libboost1.81-dev
# Of headers alone the architecture does not matter.
packages=(g++-aarch64-linux-gnu qemu-user python3 cmake ninja-build pkg-config rapidjson-dev libcli11-dev "$boost"
  {libhwy,libopenblas-pthread,libfmt,libpcre2,libutf8proc,libxxhash,libedit,libgmp,libmpfr,libmpc,libssl,libgtest,librapidcheck}-dev:arm64)
for package in "${packages[@]}"; do
  if [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)" != "install ok installed" ]; then
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
      --no-install-recommends "${packages[@]}" >/dev/null
    break
  fi
done

tests=OFF
targets=(pmkvq)
if [ "${1:-}" = --test ]; then
  tests=ON
  targets+=(pmkvq_tensor_test pmkvq_kernels_test pmkvq_kv_test)
fi
cmake --preset aarch64 -Wno-dev -DPMKVQ_BUILD_TESTS=$tests >/dev/null
ninja -C build/aarch64 -j "${PMKVQ_MATRIX_JOBS:-$(nproc)}" "${targets[@]}"
[ "$tests" = ON ] || exit 0
emulate=(qemu-aarch64 -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=/usr/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu/openblas-pthread")
export OPENBLAS_NUM_THREADS=1
"${emulate[@]}" build/aarch64/bin/pmkvq --version
# Highway's NEON forms against the scalar references. qemu is some 20 times slower than the machine: of
# the longest tests PMKVQ_AARCH64_FILTER leaves out none by default.
for test in tensor kernels kv; do
  "${emulate[@]}" "build/aarch64/bin/pmkvq_${test}_test" --gtest_brief=1 "--gtest_filter=${PMKVQ_AARCH64_FILTER:-*}"
done
"${emulate[@]}" build/aarch64/bin/pmkvq run --model models/longcot-10m --temperature 0 \
  "Multiply 472 by 58 with column sums of digit products. What is the product?" | grep -q 'boxed{27376}'
