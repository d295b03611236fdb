{{/* Arguments and environment of an engine of kind vllm. Another kind has the same two templates under its own name. */}}
{{- define "loraline.engineArgs.vllm" -}}
{{- $args := list
  (printf "--model=/bases/%s" .base)
  (printf "--served-model-name=%s" .base)
  "--host=0.0.0.0"
  "--port=8000"
  "--enable-lora"
  (printf "--max-lora-rank=%d" (int .maxLoraRank))
  (printf "--max-loras=%d" (int .maxLoras))
  (printf "--max-cpu-loras=%d" (int .maxCpuLoras))
  (printf "--max-model-len=%d" (int .maxModelLen))
-}}
{{- with .dtype }}{{ $args = append $args (printf "--dtype=%s" .) }}{{ end -}}
{{- with .quantization }}{{ $args = append $args (printf "--quantization=%s" .) }}{{ end -}}
{{- with .kvCacheDtype }}{{ $args = append $args (printf "--kv-cache-dtype=%s" .) }}{{ end -}}
{{- if not (kindIs "invalid" .prefixCaching) }}{{ $args = append $args (ternary "--enable-prefix-caching" "--no-enable-prefix-caching" .prefixCaching) }}{{ end -}}
{{- if gt (int .tensorParallelSize) 1 }}{{ $args = append $args (printf "--tensor-parallel-size=%d" (int .tensorParallelSize)) }}{{ end -}}
{{- if gt (int .nodes) 1 }}
{{- $args = concat $args (list (printf "--pipeline-parallel-size=%d" (int .nodes)) (printf "--nnodes=%d" (int .nodes)) "--node-rank=$(LWS_WORKER_INDEX)" "--master-addr=$(LWS_LEADER_ADDRESS)") -}}
{{ end -}}
{{- /* Without this option vLLM does not end on SIGTERM while a request is in flight. */ -}}
{{- $args = append $args "--shutdown-timeout=30" -}}
{{- /* Flags that only the base's files decide: the init container `check` writes them. vLLM knows the option as two words only. */ -}}
{{- $args = concat $args (list "--config" "/engine/vllm.yaml") -}}
{{- /* The engine applies the same template as the training. The guard asks for the key on every path, not only below /v1. */ -}}
{{- $args = concat $args (list "--chat-template=/engine/chat_template.jinja" "--middleware=loraline_guard.RequireKey") -}}
{{- toYaml (concat $args .extraArgs) -}}
{{- end -}}

{{- define "loraline.engineEnv.vllm" -}}
- name: VLLM_ALLOW_RUNTIME_LORA_UPDATING
  value: "True"
- name: VLLM_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "loraline.engineKeySecret" . | quote }}
      key: key
# The guard reads this.
- name: PYTHONPATH
  value: /engine
# Bases are mounted, so vLLM must not fetch anything.
- name: HF_HUB_OFFLINE
  value: "1"
# A small file may hold a picture that takes gigabytes when it is unpacked.
- name: VLLM_MAX_IMAGE_PIXELS
  value: "50000000"
# On a processor with AMX its kernels for GPTQ and AWQ would also round what comes in, to 8 bits, and answer otherwise than the base trained.
- name: VLLM_CPU_INT4_W4A8
  value: "0"
- name: VLLM_NO_USAGE_STATS
  value: "1"
- name: DO_NOT_TRACK
  value: "1"
# The root file system is read-only, and the user is not in the passwd file, so these folders must be named.
- name: HOME
  value: /tmp
- name: USER
  value: loraline
- name: VLLM_CACHE_ROOT
  value: /cache/vllm
- name: HF_HOME
  value: /cache/huggingface
- name: TORCHINDUCTOR_CACHE_DIR
  value: /cache/inductor
- name: TRITON_CACHE_DIR
  value: /cache/triton
{{- end -}}
