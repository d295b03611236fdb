#!/usr/bin/env bash
# The cluster that tests run on, with this checkout's images; its kubeconfig's path is the last line printed.
#   default                  a node on this machine: built once, started in .cache/cluster
#   LORALINE_CLUSTER=kind    a kind cluster `loraline` (needs Docker, kind, kubectl, helm). Written by kind's documents, not tried.
#   LORALINE_KUBECONFIG=F    a cluster that exists; nothing is started or loaded. Its images come from LORALINE_IMAGES=REGISTRY:TAG.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}
fail() { echo "cluster-up: $1" >&2; exit 1; }
need() { for tool in "$@"; do command -v "$tool" >/dev/null || fail "$tool is missing: it is needed for a cluster that is not built here."; done; }

if [ -n "${LORALINE_KUBECONFIG:-}" ]; then
  PATH=$PATH:$bin need kubectl helm
  [ -n "${LORALINE_IMAGES:-}" ] || fail "LORALINE_KUBECONFIG is set: say with LORALINE_IMAGES=REGISTRY:TAG which images its nodes can pull."
  PATH=$PATH:$bin kubectl --kubeconfig "$LORALINE_KUBECONFIG" get --raw /readyz --request-timeout=10s >/dev/null || fail "the cluster of $LORALINE_KUBECONFIG does not answer."
  realpath "$LORALINE_KUBECONFIG"
elif [ "${LORALINE_CLUSTER:-}" = kind ]; then
  PATH=$PATH:$bin need docker kind kubectl helm
  config=$root/.cache/kind.conf
  mkdir -p "$root/.cache"
  if ! kind get clusters 2>/dev/null | grep -qx loraline; then
    # What pods read from the node is this machine's: at the same paths.
    { printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n  extraMounts:\n'
      "$here/volumes.sh" --list | while read -r _ path; do printf '  - {hostPath: "%s", containerPath: "%s", readOnly: true}\n' "$path" "$path"; done
    } | kind create cluster --name loraline --config - --kubeconfig "$config" >&2
    PATH=$PATH:$bin kubectl --kubeconfig "$config" patch node loraline-control-plane --subresource=status --type=json \
      -p '[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"2"}]' >&2
  fi
  "$here/images.sh" --kind loraline >&2
  echo "$config"
else
  [ -z "${LORALINE_CLUSTER:-}" ] || fail "LORALINE_CLUSTER=$LORALINE_CLUSTER is not known: kind, or nothing."
  "$here/build.sh" >&2
  "$here/up.sh" "$root/.cache/cluster" >&2
  "$here/images.sh" >&2
  echo "$root/.cache/cluster/admin.conf"
fi
