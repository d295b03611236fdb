#!/usr/bin/env bash
# Prints helm/loraline-plain.yaml: the chart for those who use kubectl alone. More arguments are Helm's, such as -f values.yaml.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH=${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}:$PATH
cat <<'Y'
# Loraline without Helm, in the namespace "loraline"; made of helm/loraline by `make manifests`, with the values that it has by default.
# With others (engines and bases above all): bash helm/plain-manifests.sh -f values.yaml > plain.yaml
#
# Helm makes passwords; kubectl does not. First, once:
#   kubectl create namespace loraline
#   word() { echo "p$(head -c 512 /dev/urandom | LC_ALL=C tr -dc A-Za-z0-9 | cut -c1-40)"; }
Y
users=$(python3 -c 'import json,sys; p = json.load(open(sys.argv[1])); print(" ".join(sorted([*p["services"], *p["managers"]])))' "$here/loraline/files/nats-permissions.json")
cat <<Y
#   kubectl -n loraline create secret generic loraline-nats-auth \$(for user in $users cluster; do echo --from-literal=\$user=\$(word); done)
#   kubectl -n loraline create secret generic loraline-engine-key --from-literal=key=ek-\$(word)
#   kubectl -n loraline create secret generic loraline-admin-key --from-literal=key=ll-\$(word)
#   kubectl -n loraline create secret generic loraline-secret --from-literal=secret=\$(word)
# Then, and after every change of it:
#   kubectl apply --server-side -f helm/loraline/crds -f helm/loraline-plain.yaml
# What a new version no longer has stays; \`kubectl delete -f\` it. A Job of the streams that has another name is one of another version.
Y
helm template loraline "$here/loraline" --namespace loraline --skip-tests \
  --set nats.auth.existingSecret=loraline-nats-auth,engineKey.existingSecret=loraline-engine-key,bootstrap.existingSecret=loraline-admin-key,lineSecret.existingSecret=loraline-secret "$@" |
  sed '/app.kubernetes.io\/managed-by: Helm/d; /^# Source: /d'
