#!/usr/bin/env bash
# Builds a real Kubernetes and its tools from Go modules, once: some 17 CPU-minutes cold, seconds with a warm Go cache, nothing when all
# is there. Each part is made anew only when its own inputs changed.
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
need etcd etcd-server; need openssl openssl
if [ -z "$api_server" ]; then
  need containerd containerd; need runc runc; need iptables iptables; need ipset ipset; need conntrack conntrack; need ip iproute2
  need pgrep procps; need sysctl procps
  [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
fi
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { echo "build.sh: missing: ${missing[*]}. Install them (apt-get install ${missing[*]}), or name a cluster of yours with LORALINE_KUBECONFIG." >&2; exit 1; }
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null ||
    { echo "build.sh: apt-get could not install ${missing[*]}" >&2; exit 1; }
  printf '%s\n' "${missing[@]}" >>"$out/.packages"
fi

exec 9>"$out/.lock"
flock 9  # two at once would build everything twice
src=$(mktemp -d)
trap 'rm -rf "$src"' EXIT
# part NAME INPUTS FILE COMMAND...: COMMAND makes FILE, unless it was made of these very inputs.
part() {
  local name=$1 inputs=$2 file=$3
  shift 3
  [ -x "$out/$file" ] && [ "$(cat "$out/.stamp-$name" 2>/dev/null)" = "$inputs" ] && return
  command -v go >/dev/null || { echo "build.sh: go 1.24 or newer is needed to build $name: install it, or name a cluster of yours with LORALINE_KUBECONFIG." >&2; exit 1; }
  echo "building $name (once$([ "$name" != kube ] || echo ": some ten minutes of a core, without a warm Go cache"))" >&2
  # Somebody who waits sees that it goes on.
  ( for ((s = 60; ; s += 60)); do sleep 60; echo "  still building $name, $s s" >&2; done ) &
  local clock=$!
  ( set -e; export CGO_ENABLED=0; cd "$src"; "$@" ) || { kill $clock; exit 1; }
  kill $clock
  echo "$inputs" >"$out/.stamp-$name"
}
module_dir() { go mod download -json "$1" | python3 -c 'import json,sys; print(json.load(sys.stdin)["Dir"])'; }
install_() { unset GOFLAGS; GOBIN=$out go install -ldflags '-s -w' "$1"; }

kubernetes() {
  mkdir kube; cd kube; cp "$here/kube.go" main.go
  export GOFLAGS=-mod=mod
  dir=$(module_dir k8s.io/kubernetes@v$K)
  { # k8s.io/kubernetes replaces its staging repositories by relative paths; the published ones carry the same minor as v0.34.3.
    printf 'module kube\n\ngo 1.24\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' $K
    sed -n 's#^\s*\(k8s.io/[a-z-]*\) => ./staging/.*#\t\1 => \1 v0.'"${K#1.}"'#p' "$dir/go.mod"
    printf ')\n'
  } > go.mod
  go mod tidy 2> tidy.log || { cat tidy.log >&2; exit 1; }
  ld="-s -w"
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    ld+=" -X $p.gitVersion=v$K -X $p.gitMajor=1 -X $p.gitMinor=34 -X $p.gitTreeState=clean -X $p.buildDate=2026-01-01T00:00:00Z"
  done
  # Beside the old one first: a running cluster holds that open.
  go build -ldflags "$ld" -o "$out/.kube.new" . && mv "$out/.kube.new" "$out/kube"
  ln -sf kube "$out/kubectl"
}
part kube "$K $(sha256sum <"$here/kube.go" | cut -d' ' -f1)" kube kubernetes
part kubeconform v0.8.0 kubeconform install_ github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
part helm v4.3.0 helm install_ helm.sh/helm/v4/cmd/helm@v4.3.0
# A registry on loopback, for what a release pushes.
part registry v0.22.1 registry install_ github.com/google/go-containerregistry/cmd/registry@v0.22.1
# Puts SBOM and provenance beside an image.
part oras v1.3.6 oras install_ oras.land/oras/cmd/oras@v1.3.6
untt() { cd "$(module_dir github.com/helm-unittest/helm-unittest@v1.1.2)" && go build -ldflags '-s -w' -o "$out/untt" ./cmd/helm-unittest; }
part untt v1.1.2 untt untt
[ -n "$api_server" ] && exit 0

pause() { go build -ldflags '-s -w' -o "$out/pause" "$here/pause.go"; }
part pause "$(sha256sum <"$here/pause.go" | cut -d' ' -f1)" pause pause
# Enforces NetworkPolicies.
part kube-router v2.1.0 kube-router install_ github.com/cloudnativelabs/kube-router/v2/cmd/kube-router@v2.1.0
part coredns v1.15.0 coredns install_ github.com/coredns/coredns@v1.15.0
part nats-server v2.15.2 nats-server install_ github.com/nats-io/nats-server/v2@v2.15.2
# JobSet's controller and, in jobset-chart/, the chart that installs it: from the same module, so that they fit each other.
jobset() {
  local dir; dir=$(module_dir sigs.k8s.io/jobset@v0.10.1)
  rm -rf "$out/jobset-chart" && cp -r "$dir/charts/jobset" "$out/jobset-chart" && chmod -R u+w "$out/jobset-chart"
  cd "$dir" && go build -ldflags '-s -w' -o "$out/jobset" .
}
part jobset v0.10.1 jobset jobset
