#!/usr/bin/env bash
# Gives a node its pretended GPUs again when a kubelet that started anew has taken them away. Another number than COUNT is a test's, and stays.
# usage: KUBECONFIG=... pretend-gpus.sh NODE COUNT
while sleep 1; do
  now=$(kubectl get node "$1" -o 'jsonpath={.status.capacity.nvidia\.com/gpu}' 2>/dev/null) || continue
  case $now in
  "" | 0)
    kubectl patch node "$1" --subresource=status --type=json \
      -p '[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"'"$2"'"}]' 2>&1
    ;;
  esac
done
