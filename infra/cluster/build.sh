#!/usr/bin/env bash
# Builds a real Kubernetes from Go modules, once: 14 CPU-minutes cold, seconds with a warm Go cache, nothing when it is there already.
# usage: build.sh [--api-server] [BIN_DIR]      default: ~/.cache/loraline/cluster-bin, which outlives a checkout
# --api-server: only what tests without a node need, which is half of it
# Needs go >= 1.24 and python3. Downloads Go modules, and from Debian what a node needs besides.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
api_server=
[ "${1:-}" = --api-server ] && { api_server=1; shift; }
out=${1:-${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}}; mkdir -p "$out"; out=$(cd "$out" && pwd)
K=1.34.3

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need etcd etcd-server
if [ -z "$api_server" ]; then
  need containerd containerd; need runc runc; need iptables iptables; need conntrack conntrack
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
fi
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
# Complete, and of these very sources?
stamp=$(cat "$here/build.sh" "$here/kube.go" "$here/pause.go" | sha256sum | cut -d' ' -f1)
is_there() { [ "$(cat "$out/.stamp-$1" 2>/dev/null)" = "$stamp" ]; }
if is_there kube && { [ -n "$api_server" ] || is_there node; }; then exit 0; fi
command -v go >/dev/null || { echo "go 1.24 or newer is needed to build Kubernetes: install it, or name a cluster of yours with KUBECONFIG." >&2; exit 1; }
echo "building Kubernetes $K into $out (once; some minutes)" >&2

if ! is_there kube; then
src=$(mktemp -d); trap 'rm -rf "$src"' EXIT
cp "$here/kube.go" "$src/main.go"; cd "$src"
dir=$(GOFLAGS=-mod=mod go mod download -json k8s.io/kubernetes@v$K | python3 -c 'import json,sys; print(json.load(sys.stdin)["Dir"])')
{ # k8s.io/kubernetes replaces its staging repositories by relative paths; the published ones carry the same minor as v0.34.3.
  printf 'module kube\n\ngo 1.24\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' $K
  sed -n 's#^\s*\(k8s.io/[a-z-]*\) => ./staging/.*#\t\1 => \1 v0.'"${K#1.}"'#p' "$dir/go.mod"
  printf ')\n'
} > go.mod
export GOFLAGS=-mod=mod CGO_ENABLED=0
go mod tidy 2> tidy.log || { cat tidy.log >&2; exit 1; }
ld="-s -w"
for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  ld+=" -X $p.gitVersion=v$K -X $p.gitMajor=1 -X $p.gitMinor=34 -X $p.gitTreeState=clean -X $p.buildDate=2026-01-01T00:00:00Z"
done
go build -ldflags "$ld" -o "$out/kube" .
ln -sf kube "$out/kubectl"
echo "$stamp" > "$out/.stamp-kube"
fi
[ -n "$api_server" ] && exit 0

export CGO_ENABLED=0 GOBIN=$out; unset GOFLAGS
go build -ldflags '-s -w' -o "$out/pause" "$here/pause.go"
go install -ldflags '-s -w' github.com/coredns/coredns@v1.15.0
go install -ldflags '-s -w' helm.sh/helm/v4/cmd/helm@v4.3.0
go install -ldflags '-s -w' github.com/nats-io/nats-server/v2@latest
echo "$stamp" > "$out/.stamp-node"
