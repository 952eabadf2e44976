#!/usr/bin/env bash
# Installs the Debian packages that pmkvq needs, and only those that are missing.
#
# Usage: scripts/install-deps.sh [build|test|test-server|test-python|bench|coverage|fuzz|format|package|test-packages|container]...   (build is always included)
# Needs root or sudo when something is missing; does nothing and says nothing otherwise.
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config ccache git ca-certificates
  libhwy-dev libopenblas-pthread-dev rapidjson-dev libcli11-dev libfmt-dev
  libpcre2-dev libutf8proc-dev libxxhash-dev libedit-dev libgmp-dev libmpfr-dev libmpc-dev
  libssl-dev libopenmpi-dev)
# Debian 12's libboost-dev is 1.74, whose Asio is too old; it has 1.81 beside it.
if [ "$(. /etc/os-release 2>/dev/null && echo "${ID:-}${VERSION_ID:-}")" = debian12 ]; then
  packages+=(libboost1.81-dev)
else
  packages+=(libboost-dev)
fi
for group in "$@"; do
  case "$group" in
    build) ;;
    # libsentencepiece is what our reader of tokenizer.model is compared with; chromium opens the pages that `pmkvq analyze` writes, openssl makes certificates; openmpi-bin starts ranks; zsh, fish and mandoc try completion and manual pages.
    test) packages+=(libgtest-dev librapidcheck-dev libsentencepiece-dev python3 python3-dev python3-venv openssl chromium openmpi-bin zsh fish mandoc) ;;
    # promtool is in prometheus; systemd-analyze checks the unit.
    test-server) packages+=(python3 python3-venv openssl curl nodejs prometheus systemd chromium) ;;
    test-python) packages+=(python3 python3-dev python3-venv) ;;
    bench) packages+=(libbenchmark-dev) ;;
    coverage) packages+=(libgtest-dev librapidcheck-dev python3 gcovr) ;;
    fuzz) packages+=(clang libclang-rt-dev) ;;
    format) packages+=(clang-format clang-tidy libgtest-dev librapidcheck-dev python3) ;;
    package) packages+=(dpkg-dev file gzip lintian) ;;
    test-packages) packages+=(debootstrap) ;;
    container) packages+=(buildah debootstrap) ;;
    *)
      echo "install-deps.sh: unknown group '$group'; known: build test test-server test-python bench coverage fuzz format package test-packages container" >&2
      exit 2
      ;;
  esac
done

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  echo "install-deps.sh: this is no Debian system; install the equivalents of these packages by hand:" >&2
  echo "  ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "install-deps.sh: these packages are missing and neither root nor sudo is at hand; as root, run:" >&2
    echo "  apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
