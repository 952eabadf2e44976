#!/usr/bin/env bash
# Builds the image of Containerfile with buildah, and answers a question with the shipped model in it.
#
# Usage: scripts/test-container.sh [--packages DIR]
#   --packages DIR  takes these packages (made by ./run package) in place of those of the first stage
# Where docker.io cannot be reached, debian:12-slim is made by debootstrap (wants root); the steps of
# Containerfile are the same.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

context=.
file=Containerfile
temporary=$(mktemp -d /var/tmp/pmkvq-container.XXXXXX)
container=
cleanup() {
  [ -z "$container" ] || buildah rm "$container" >/dev/null
  rm -rf "$temporary"
}
trap cleanup EXIT
case "${1:-}" in
  "") ;;
  --packages)
    mkdir -p "$temporary/context/packages"
    cp "${2:?test-container.sh: --packages wants a folder}"/pmkvq_*.deb "$temporary/context/packages"
    context=$temporary/context
    file=$context/Containerfile
    # Without the first stage; the packages come from the context.
    sed -e '/ AS build$/,/^$/d' -e 's|^COPY --from=build /packages/|COPY packages/|' Containerfile >"$file"
    ;;
  *)
    echo "test-container.sh: unknown option '$1'; known: --packages" >&2
    exit 2
    ;;
esac
scripts/install-deps.sh container

base=docker.io/library/debian:12-slim
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
if ! buildah images -q "$base" 2>/dev/null | grep -q . && ! buildah pull -q "$base" 2>/dev/null; then
  echo "test-container.sh: $base cannot be pulled; debootstrap makes it"
  root=$temporary/root
  debootstrap --variant=minbase --include=ca-certificates bookworm "$root" >"$temporary/log"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  container=$(buildah from scratch)
  buildah add -q "$container" "$root" / >/dev/null
  buildah config --cmd bash "$container"
  buildah commit -q "$container" "$base" >/dev/null
  buildah rm "$container" >/dev/null
  container=
fi
# A compiler cache makes a second build short: PMKVQ_CONTAINER_CACHE=DIR.
buildah build --pull=never --layers=false ${PMKVQ_CONTAINER_CACHE:+-v "$PMKVQ_CONTAINER_CACHE:/root/.cache/ccache"} \
  -t pmkvq -f "$file" "$context"
container=$(buildah from --pull=never pmkvq)
[ "$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")" = pmkvq ]
buildah inspect --format '{{.OCIv1.Config.Entrypoint}}' "$container"
buildah run "$container" -- pmkvq --version
answer=$(buildah run -v "$PWD/models/longcot-10m:/model:ro" "$container" -- pmkvq run --model /model --temperature 0 \
  "Multiply 472 by 58 with column sums of digit products. What is the product?")
grep -q 'boxed{27376}' <<<"$answer"
[ "$(buildah run "$container" -- id -u)" = 1000 ]
echo "test-container.sh: built, answers 27376, user 1000"
