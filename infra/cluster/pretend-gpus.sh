#!/usr/bin/env bash
# Keeps a node's pretended GPUs in its status. usage: KUBECONFIG=... pretend-gpus.sh NODE COUNT
while sleep 1; do
  [ "$(kubectl get node "$1" -o 'jsonpath={.status.capacity.nvidia\.com/gpu}' 2>/dev/null)" = "$2" ] ||
    kubectl patch node "$1" --subresource=status --type=json \
      -p '[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"'"$2"'"}]' 2>&1
done
