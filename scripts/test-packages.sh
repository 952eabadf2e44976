#!/usr/bin/env bash
# Packages as their user has them, on fresh systems: builds them in a root of each release, then
# installs, uses and removes them in another fresh one. Wants root (debootstrap, chroot).
#
# Usage: scripts/test-packages.sh [--work DIR] [--packages DIR] [SUITE...]     all: bookworm trixie
#   --work DIR      where the roots are made (/var/tmp/pmkvq-roots); kept, so that a next run starts from them
#   --packages DIR  packages that are there already (one SUITE): they are not built
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=/var/tmp/pmkvq-roots
packages=
suites=()
while [ $# -gt 0 ]; do
  case "$1" in
    --work) work=$2 && shift ;;
    --packages) packages=$(realpath "$2") && shift ;;
    -*)
      echo "test-packages.sh: unknown option '$1'; known: --work, --packages" >&2
      exit 2
      ;;
    *) suites+=("$1") ;;
  esac
  shift
done
[ ${#suites[@]} -gt 0 ] || suites=(bookworm trixie)
if [ "$(id -u)" -ne 0 ]; then
  echo "test-packages.sh: making a Debian root wants root; run it by sudo" >&2
  exit 1
fi
mkdir -p "$work"

fresh_root() {  # SUITE ROOT
  if [ ! -f "$work/$1.tar" ]; then
    rm -rf "$work/$1-new"
    debootstrap --variant=minbase --include=ca-certificates "$1" "$work/$1-new" >"$work/$1.log"
    tar -C "$work/$1-new" -cf "$work/$1.tar.part" .
    mv "$work/$1.tar.part" "$work/$1.tar"
    rm -rf "$work/$1-new"
  fi
  rm -rf "$2"
  mkdir "$2"
  tar -C "$2" -xf "$work/$1.tar"
  cp /etc/resolv.conf "$2/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$2/etc/ssl/certs/ca-certificates.crt"
}

# Runs a command in a root, with file systems that go away with it.
inside() {  # ROOT COMMAND
  unshare --mount --pid --fork bash -c '
    mount --make-rprivate /
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    exec env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive TERM=dumb \
      PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$0" bash -euc "$1"' "$1" "$2"
}

for suite in "${suites[@]}"; do
  root=$work/$suite-build
  made=$packages
  if [ -z "$made" ]; then
    fresh_root "$suite" "$root"
    git clone -q . "$root/root/pmkvq"
    inside "$root" 'apt-get update -qq && cd /root/pmkvq && scripts/install-deps.sh build package && ./run package'
    made=$root/root/pmkvq/build/packages
  fi
  root=$work/$suite-use
  fresh_root "$suite" "$root"
  mkdir "$root/packages"
  cp "$made"/*.deb "$root/packages"
  cp -r models/longcot-10m "$root/packages/model"
  cp scripts/use-packages.sh tests/tools/program_files_test.py "$root/packages"
  inside "$root" 'bash /packages/use-packages.sh /packages'
  echo "test-packages.sh: $suite: installed, used and removed"
done
