#!/usr/bin/env bash
# Values of the chart for the test cluster: our own images, a CPU engine, Python and the bases from the claims of
# infra/cluster/volumes.sh, resources for two cores. Printed, because the Python environment must be where this checkout has it.
# usage: values.sh | helm install loraline helm/loraline -n NAMESPACE -f -   (NAMESPACE made by infra/cluster/volumes.sh)
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
volumes= mounts=
while read -r name path; do
  [ "$name" = bases ] && continue
  [ "$name" = python ] && python=$path
  volumes+="
  - {name: $name, persistentVolumeClaim: {claimName: $name, readOnly: true}}"
  mounts+="
  - {name: $name, mountPath: $path, readOnly: true}"
done < <(bash "$root/infra/cluster/volumes.sh" --list)
indented() { sed 's/^/    /' <<<"${1#$'\n'}"; }
cat <<Y
image: {tag: dev, nats: docker.io/loraline/nats:dev}
bases: {volume: {persistentVolumeClaim: {claimName: bases, readOnly: true}}}
nats:
  persistence: {storageClassName: "", size: 4Gi}
  resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 1Gi}}
streams: {resources: {requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 512Mi}}}
gateway: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 1Gi}}}
ingest: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 2Gi}}}
tokenize: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 2Gi}}}
serve: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 1Gi}}}
operator: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 512Mi}}}
agent: {resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 512Mi}}}
train:
  resources: {requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 1Gi}}
  pods:
    # The node only pretends to have them.
    gpus: 1
    device: cpu
    cpu: 100m
    memory: 4Gi
    ephemeralStorage: 1Gi
    env:
    - {name: LORALINE_PYTHON, value: $python/bin/python}
    - {name: OMP_NUM_THREADS, value: "2"}
    - {name: HF_HUB_OFFLINE, value: "1"}
    volumes:
$(indented "$volumes")
    volumeMounts:
$(indented "$mounts")
engineDefaults:
  image: docker.io/loraline/engine-cpu:dev
  command: [$python/bin/python, packages/local/engine.py]
  gpus: 0
  maxModelLen: 2048
  dtype: bfloat16
  # As packages/local/src/engine.ts starts it.
  extraArgs: [--max-num-seqs=16, --enforce-eager, --distributed-executor-backend=uni, --disable-log-stats, --disable-uvicorn-access-log]
  env:
  - {name: OMP_NUM_THREADS, value: "1"}
  - {name: VLLM_CPU_OMP_THREADS_BIND, value: nobind}
  - {name: VLLM_CPU_KVCACHE_SPACE, value: "1"}
  - {name: VLLM_ENABLE_V1_MULTIPROCESSING, value: "0"}
  - {name: TORCHDYNAMO_DISABLE, value: "1"}
  - {name: PYTHONUNBUFFERED, value: "1"}
  resources: {requests: {cpu: 100m, memory: 2Gi}, limits: {memory: 5Gi}}
  volumes:
$(indented "$volumes" | sed 's/^  //')
  volumeMounts:
$(indented "$mounts" | sed 's/^  //')
engines:
- {name: smollm2, base: smollm2-135m-instruct, replicas: 1}
Y
