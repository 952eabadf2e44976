#!/bin/bash
# Installs a built tree into a temporary prefix, builds the consumer against it alone, runs it.
# Usage: run.sh BUILD_FOLDER SOURCE_ROOT [COMPILE_AND_LINK_FLAGS]
set -euo pipefail
build=$1
root=$2
flags=${3:-}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/prefix" --component product >/dev/null
if [ -d "$work/prefix/include/pmkvq/research" ]; then
  echo "run.sh: the product's component holds headers of research/" >&2
  exit 1
fi
cmake -S "$root/tests/consumer" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  "-DCMAKE_PREFIX_PATH=$work/prefix" "-DCMAKE_CXX_FLAGS=$flags" >/dev/null
cmake --build "$work/build"

# The first held-out problem, whose answer the model is known to find.
message=$'A code x has three digits and starts at 185. In every step, let r be the first digit of x, take a and b from row r of the table, and replace x by the last three digits of a*x+b.\nr=0: a=3 b=366\nr=1: a=7 b=157\nr=2: a=9 b=966\nr=3: a=3 b=979\nr=4: a=7 b=776\nr=5: a=9 b=774\nr=6: a=9 b=860\nr=7: a=3 b=887\nr=8: a=9 b=600\nr=9: a=7 b=044\nWhat is x after 05 steps?'
output=$("$work/build/consumer" "$root/models/longcot-10m" "$message")
echo "$output"
grep -q 'boxed{108}' <<<"$output"
grep -q '\[stop: ' <<<"$output"

# The same program by pkg-config.
pc=$(dirname "$(find "$work/prefix" -name pmkvq.pc)")
# shellcheck disable=SC2046,SC2086 -- lists of flags
g++ $flags "$root/tests/consumer/main.cc" -o "$work/by_pkg_config" \
  $(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs pmkvq)
"$work/by_pkg_config" "$root/models/longcot-10m" "$message" | grep -q 'boxed{108}'

# The research library, beside the product's.
cmake --install "$build" --prefix "$work/prefix" --component research >/dev/null
cmake -S "$root/tests/consumer/research" -B "$work/research" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  "-DCMAKE_PREFIX_PATH=$work/prefix" "-DCMAKE_CXX_FLAGS=$flags" >/dev/null
cmake --build "$work/research"
"$work/research/research_consumer"
