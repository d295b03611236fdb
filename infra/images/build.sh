#!/usr/bin/env bash
# Builds the image of each Dockerfile beside it, with the Docker engine's own builder or, where it is, with buildx.
# usage: build.sh REGISTRY VERSION [IMAGE...]      default: all of them
#   NODE_IMAGE, PYTHON_IMAGE   what they begin with; where no registry can be reached: base-images.sh
# Makes the local images REGISTRY/IMAGE:VERSION. An engine that has built them before takes seconds.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "build.sh: $1" >&2; exit 1; }
registry=${1:-} version=${2:-}
[ -n "$registry" ] && [ -n "$version" ] || fail "usage: build.sh REGISTRY VERSION [IMAGE...]"
shift 2
[ -n "${NODE_IMAGE:-}" ] && [ -n "${PYTHON_IMAGE:-}" ] || fail "set NODE_IMAGE and PYTHON_IMAGE, pinned by digest: see infra/images."
docker info >/dev/null 2>&1 || fail "no Docker engine answers: docker info says why."
build=(docker build)
if docker buildx version >/dev/null 2>&1; then build=(docker buildx build --load); else export DOCKER_BUILDKIT=0; fi
[ $# -gt 0 ] || set -- $(cd infra/images && printf '%s\n' *.Dockerfile | sed 's/\.Dockerfile$//')
for image in "$@"; do
  file=infra/images/$image.Dockerfile
  [ -e "$file" ] || fail "there is no $file."
  arguments=()
  for name in $(sed -n 's/^ARG \([A-Z]*_IMAGE\)$/\1/p' "$file"); do arguments+=(--build-arg "$name=${!name}"); done
  echo "build.sh: $image" >&2
  log=$(mktemp)
  "${build[@]}" --network host --file "$file" "${arguments[@]}" --tag "$registry/$image:$version" . >"$log" 2>&1 ||
    { tail -60 "$log" >&2; rm "$log"; fail "$file cannot be built; the end of what the builder said is above."; }
  rm "$log"
done
