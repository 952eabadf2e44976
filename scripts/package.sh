#!/usr/bin/env bash
# Builds the Debian packages for the release of Debian that runs this, with SHA256SUMS.
#
# Usage: scripts/package.sh [--no-lintian] [--twice] [OUT]      OUT: build/packages
#   --twice       builds the commit once more in another folder and compares the packages' hashes
#   --no-lintian  leaves out the checks of lintian
#
# Reproducible: SOURCE_DATE_EPOCH (default: the time of the commit) is the only time that is used,
# and the preset `package` keeps folder names and flags of the environment out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=build/packages
lintian=1
twice=
for argument in "$@"; do
  case "$argument" in
    --no-lintian) lintian= ;;
    --twice) twice=1 ;;
    -*)
      echo "package.sh: unknown option '$argument'; known: --twice, --no-lintian" >&2
      exit 2
      ;;
    *) out=$argument ;;
  esac
done

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
  SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
fi
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
unset CFLAGS CXXFLAGS CPPFLAGS LDFLAGS
umask 022
release=$(. /etc/os-release && echo "1~deb${VERSION_ID:-0}")
maintainer=${DEBFULLNAME:+$DEBFULLNAME <${DEBEMAIL:?package.sh: DEBFULLNAME is set, DEBEMAIL is not}>}

build() {  # FOLDER OUT: builds the packages of the tree in FOLDER.
  local log=$1/build/package/cpack.log
  (
    cd "$1"
    cmake --preset package -Wno-dev "-DPMKVQ_PACKAGE_RELEASE=$release" \
      ${maintainer:+"-DPMKVQ_MAINTAINER=$maintainer"} >/dev/null
    cmake --build --preset package
    rm -rf build/package/_CPack_Packages
    cpack --config build/package/CPackConfig.cmake -B build/package/debs >build/package/cpack.log
  ) || {
    tail -n 20 "$log" >&2 2>/dev/null
    return 1
  }
  mkdir -p "$2"
  rm -f "$2"/*.deb "$2"/SHA256SUMS
  cp "$1"/build/package/debs/*.deb "$1/build/package/pmkvq.spdx.json" "$2"
  rm -rf "$1/build/package/debs"
  (cd "$2" && sha256sum -- *.deb pmkvq.spdx.json >SHA256SUMS)
}

build . "$out"
if [ -n "$lintian" ]; then
  # Errors stop; warnings are shown.
  lintian --allow-root --fail-on error "$out"/*.deb
fi
cat "$out/SHA256SUMS"
if [ -n "$twice" ]; then
  other=$(mktemp -d /var/tmp/pmkvq-second-build.XXXXXX)
  trap 'rm -rf "$other"' EXIT
  git clone -q . "$other/elsewhere"
  build "$other/elsewhere" "$other/out"
  if ! diff "$out/SHA256SUMS" "$other/out/SHA256SUMS"; then
    echo "package.sh: a second build in another folder gave other packages; diffoscope shows where" >&2
    exit 1
  fi
  echo "a second build in another folder: the same packages"
fi
