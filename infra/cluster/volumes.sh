#!/usr/bin/env bash
# Gives a namespace what pods of this checkout read from the node: claims `python` (.venv), `python-base` (the interpreter that
# .venv points at, unless it is Debian's) and `bases`, each mounted read-only at the path that the node has it at.
# The namespace is made, with restricted Pod Security, when it is not there. In restricted namespaces hostPath volumes are
# refused, but claims on hostPath PersistentVolumes pass.
# usage: KUBECONFIG=... volumes.sh NAMESPACE            --delete NAMESPACE: the namespace and its volumes go
#   LORALINE_BASES_DIR   another folder of bases than this checkout's
#        volumes.sh --list                              NAME PATH of each, for those who write pods
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
PATH=${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}:$PATH

volumes() {
  echo "python $root/.venv"
  local home
  home=$(sed -n 's/^home = //p' "$root/.venv/pyvenv.cfg")
  [ "$home" = /usr/bin ] || echo "python-base $(dirname "$home")"
  echo "bases ${LORALINE_BASES_DIR:-$root/.loraline/bases}"
}
case ${1:?usage: volumes.sh NAMESPACE} in
  --list) volumes; exit ;;
  --delete)
    # An attempt has two minutes to save a checkpoint, for a run that nobody follows any more. No pod is made in a namespace that ends. Where
    # the namespace's end has asked a pod to stop already, the kubelet keeps to those two minutes unless the pod's object goes at once.
    kubectl delete namespace "$2" --ignore-not-found --wait=false
    kubectl delete pods --all --namespace "$2" --grace-period=0 --force --wait=false >/dev/null 2>&1 || true
    kubectl delete namespace "$2" --ignore-not-found --timeout=180s
    kubectl delete persistentvolume -l "loraline.dev/test-namespace=$2" --timeout=60s
    exit ;;
esac
namespace=$1
manifest=$(mktemp)
trap 'rm -f "$manifest"' EXIT
volumes | while read -r name path; do
  [ -e "$path" ] || { echo "volumes.sh: $path is missing: run make setup." >&2; exit 1; }
  # Left by an earlier namespace of this name: it waits for a claim that is gone.
  phase=$(kubectl get persistentvolume "$namespace-$name" --ignore-not-found -o 'jsonpath={.status.phase}')
  [ "$phase" != Released ] || kubectl delete persistentvolume "$namespace-$name" >&2
  cat <<Y
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: $namespace-$name, labels: {loraline.dev/test-namespace: $namespace}}
spec:
  capacity: {storage: 8Gi}
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  persistentVolumeReclaimPolicy: Retain
  claimRef: {namespace: $namespace, name: $name}
  hostPath: {path: $path, type: Directory}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $name, namespace: $namespace}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: ""
  volumeName: $namespace-$name
  resources: {requests: {storage: 8Gi}}
Y
done >"$manifest"
kubectl apply --server-side -f - >/dev/null <<Y
apiVersion: v1
kind: Namespace
metadata: {name: $namespace, labels: {pod-security.kubernetes.io/enforce: restricted}}
Y
kubectl apply --server-side -f "$manifest" >/dev/null
