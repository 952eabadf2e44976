#!/bin/bash
# Installs a build with BUILD_SHARED_LIBS into a temporary prefix: the library's name, what it exports,
# and the consumer built against it by CMake and by pkg-config.
# Usage: shared.sh BUILD_FOLDER SOURCE_ROOT [COMPILER]
set -euo pipefail
build=$1
root=$2
compiler=${3:-c++}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "shared.sh: $*" >&2
  exit 1
}

cmake --install "$build" --prefix "$work/prefix" --component product >/dev/null
! find "$work/prefix" -name '*.a' | grep . || fail "static libraries are installed beside the shared one"
library=$(find "$work/prefix" -name libpmkvq.so)
name=$(readelf -d "$library" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
version=$(sed -n 's/^project(pmkvq VERSION \([0-9]*\.[0-9]*\).*/\1/p' "$root/CMakeLists.txt")
[ "$name" = "libpmkvq.so.$version" ] || fail "SONAME is $name, expected libpmkvq.so.$version"
nm -DC --defined-only "$library" | sed 's/^[0-9a-f]* *[A-Za-z] //' >"$work/exported"
grep -q '^pmkvq::Engine::' "$work/exported" || fail "pmkvq::Engine is not exported"
if grep -vE '^(pmkvq::|(typeinfo|typeinfo name|vtable|VTT|guard variable) for pmkvq::)' "$work/exported" >"$work/others"; then
  head -n 5 "$work/others" >&2
  fail "names outside pmkvq are exported"
fi

question="Multiply 472 by 58 with column sums of digit products. What is the product?"
cmake -S "$root/tests/consumer" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  "-DCMAKE_CXX_COMPILER=$compiler" "-DCMAKE_PREFIX_PATH=$work/prefix" >/dev/null
cmake --build "$work/build" >/dev/null
"$work/build/consumer" "$root/models/longcot-10m" "$question" | grep -q 'boxed{27376}'
pc=$(dirname "$(find "$work/prefix" -name pmkvq.pc)")
# shellcheck disable=SC2046 -- lists of flags
"$compiler" "$root/tests/consumer/main.cc" -o "$work/by_pkg_config" \
  $(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs pmkvq)
LD_LIBRARY_PATH=$(dirname "$library") "$work/by_pkg_config" "$root/models/longcot-10m" "$question" | grep -q 'boxed{27376}'
echo "$name: $(wc -l <"$work/exported") names, all of pmkvq; a program built against it answers 27376"
