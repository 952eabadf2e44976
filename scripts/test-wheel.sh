#!/usr/bin/env bash
# Installs a wheel into a new virtual environment and answers a problem with it. With ROOT, a folder with
# another Debian (debootstrap trixie ROOT), all of this happens in there; it needs root, python3 and
# python3-venv in ROOT.
# Usage: scripts/test-wheel.sh WHEEL [ROOT]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wheel=$1 root=${2:-}
place=$root/tmp/pmkvq-wheel-test
enter=()
if [ -n "$root" ]; then enter=(chroot "$root"); fi
trap 'rm -rf "$place"' EXIT
rm -rf "$place"
mkdir -p "$place"
cp -r "$wheel" models/longcot-10m examples/python/generate.py "$place"
# NumPy is fetched here: ROOT may have no network.
version=$("${enter[@]}" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
python3 -m pip --disable-pip-version-check --quiet download numpy --only-binary :all: --python-version "$version" \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_27_x86_64 --dest "$place"
"${enter[@]}" sh -euc '
  cd /tmp/pmkvq-wheel-test
  python3 -m venv venv
  venv/bin/python -m pip --quiet --disable-pip-version-check install --no-index --find-links . pmkvq
  . /etc/os-release
  echo "$PRETTY_NAME, $(venv/bin/python --version), $(getconf GNU_LIBC_VERSION)"
  venv/bin/python generate.py longcot-10m' | tee "$place/output"
for answer in 27376 18270 35264; do
  grep -q "$answer" "$place/output" || { echo "test-wheel: no $answer among the answers" >&2; exit 1; }
done
