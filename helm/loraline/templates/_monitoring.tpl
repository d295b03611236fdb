{{/* Base URLs of the monitors of NATS' servers, which serve reads for its metrics. */}}
{{- define "loraline.natsMonitors" -}}
{{- $urls := .Values.nats.monitors -}}
{{- if .Values.nats.enabled -}}
{{- $name := printf "%s-nats" (include "loraline.fullname" .) -}}
{{- range $i := until (int .Values.nats.replicas) }}{{ $urls = append $urls (printf "http://%s-%d.%s-headless.%s.svc:8222" $name $i $name $.Release.Namespace) }}{{ end -}}
{{- end -}}
{{- join "," $urls -}}
{{- end -}}
