#!/usr/bin/env bash
# After `make cluster-up`: writes values of the chart for that cluster, and prints the commands from there to an adapter that answers.
# usage: next-steps.sh KUBECONFIG
set -euo pipefail
cd "$(dirname "$0")/../.."
conf=${1:?usage: next-steps.sh KUBECONFIG}
bin=${LORALINE_CLUSTER_BIN:-$HOME/.cache/loraline/cluster-bin}
values=.cache/cluster-values.json
if [ -n "${LORALINE_KUBECONFIG:-}" ]; then
  echo "export KUBECONFIG=$conf"
  exit
fi
python3 infra/cluster/values.py --try >$values
cat <<T
# The cluster runs, with the images of this checkout. From $PWD:
export KUBECONFIG=$conf PATH=\$PATH:$bin
for n in loraline loraline-runs; do bash infra/cluster/volumes.sh \$n; done     # namespaces, with the bases and Python of this checkout
helm upgrade --install loraline helm/loraline -n loraline -f $values --wait --timeout 15m
helm test loraline -n loraline --logs --timeout 15m     # trains the sample for a few steps, and asks it
# make cluster-down stops it.
T
