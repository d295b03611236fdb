{{- define "loraline.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "loraline" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-loraline" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of a component. Names that a user chose are in quotes: "7" and "123e4" are numbers to YAML. (list root component) */}}
{{- define "loraline.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: loraline
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of pods. No version is among them: pods start anew when what they run changes, and not with every chart. (list root component) */}}
{{- define "loraline.podLabels" -}}
{{- $root := index . 0 -}}
{{ include "loraline.selector" . }}
app.kubernetes.io/part-of: loraline
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of all other objects. (list root component) */}}
{{- define "loraline.labels" -}}
{{- $root := index . 0 -}}
{{ include "loraline.podLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/*
name, namespace, labels and annotations of an object. (list root component suffix more): suffix "" is the bare name. `more` may be left out, or be
(dict "name" "namespace" "labels" "annotations"): namespace "" is none, as of what is the cluster's.
*/}}
{{- define "loraline.metadata" -}}
{{- $root := index . 0 -}}
{{- $suffix := index . 2 -}}
{{- $more := dict -}}
{{- if gt (len .) 3 }}{{ $more = index . 3 }}{{ end -}}
{{- if $more.name -}}
name: {{ $more.name | quote }}
{{- else -}}
name: {{ include "loraline.fullname" $root }}{{ if $suffix }}-{{ $suffix }}{{ end }}
{{- end }}
{{- with ternary $more.namespace $root.Release.Namespace (hasKey $more "namespace") }}
namespace: {{ . | quote }}
{{- end }}
labels:
  {{- include "loraline.labels" (list $root (index . 1)) | nindent 2 }}
  {{- with $more.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) ($more.annotations | default dict) ($root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Reference of one of Loraline's images. (list root name) */}}
{{- define "loraline.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $image := $root.Values.image -}}
{{- $reference := index $image $name | default (printf "%s/%s:%s" $image.registry $name ($image.tag | default $root.Chart.AppVersion)) -}}
{{- include "loraline.withDigest" (list (include "loraline.mirrored" (list $root $reference)) (index $image.digest $name)) -}}
{{- end -}}
{{/* A reference at the mirror, if there is one: what names the registry is replaced. (list root reference) */}}
{{- define "loraline.mirrored" -}}
{{- $mirror := (index . 0).Values.image.mirror -}}
{{- if $mirror -}}
{{- printf "%s/%s" (trimSuffix "/" $mirror) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" (index . 1) "") -}}
{{- else -}}
{{- index . 1 -}}
{{- end -}}
{{- end -}}
{{/* A reference pinned to a digest, if there is one; the tag then only tells people what it is. (list reference digest) */}}
{{- define "loraline.withDigest" -}}
{{- index . 0 -}}{{- with index . 1 }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Mebibytes of a size such as 20Gi. */}}
{{- define "loraline.mebibytes" -}}
{{- mul (regexFind "[0-9]+" . | int64) (get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i$" .)) -}}
{{- end -}}

{{/* The namespace of attempts. */}}
{{- define "loraline.runsNamespace" -}}
{{- .Values.train.namespace | default (printf "%s-runs" (.Release.Namespace | trunc 58 | trimSuffix "-")) -}}
{{- end -}}

{{/* As JSON: namespaces in which attempts are made. */}}
{{- define "loraline.attemptNamespaces" -}}
{{- prepend (values .Values.train.tenantNamespaces | sortAlpha) (include "loraline.runsNamespace" .) | uniq | toJson -}}
{{- end -}}

{{/* As JSON: namespaces in which an earlier release made attempts that are there still. Helm sees those of the release's own namespace. */}}
{{- define "loraline.formerNamespaces" -}}
{{- $runs := include "loraline.runsNamespace" . -}}
{{- $former := .Values.train.formerNamespaces -}}
{{- if ne $runs .Release.Namespace -}}
{{- range list (list "batch/v1" "Job") (list "jobset.x-k8s.io/v1alpha2" "JobSet") -}}
{{- if or (eq (index . 1) "Job") ($.Capabilities.APIVersions.Has (index . 0)) -}}
{{- range (lookup (index . 0) (index . 1) $.Release.Namespace "").items -}}
{{- $ended := false -}}
{{- range (.status | default dict).conditions }}{{ if and (eq .status "True") (has .type (list "Complete" "Completed" "Failed")) }}{{ $ended = true }}{{ end }}{{ end -}}
{{- if and (not $ended) (eq (get (.metadata.labels | default dict) "app.kubernetes.io/component") "train-attempt") }}{{ $former = append $former $.Release.Namespace }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $kept := list -}}
{{- $now := include "loraline.attemptNamespaces" . | fromJsonArray -}}
{{- range $former | uniq }}{{ if not (has . $now) }}{{ $kept = append $kept . }}{{ end }}{{ end -}}
{{- $kept | toJson -}}
{{- end -}}

{{- define "loraline.natsAuthSecret" -}}
{{- .Values.nats.auth.existingSecret | default (printf "%s-nats-auth" (include "loraline.fullname" .)) -}}
{{- end -}}
{{- define "loraline.engineKeySecret" -}}
{{- .Values.engineKey.existingSecret | default (printf "%s-engine-key" (include "loraline.fullname" .)) -}}
{{- end -}}
{{- define "loraline.lineSecret" -}}
{{- .Values.lineSecret.existingSecret | default (printf "%s-secret" (include "loraline.fullname" .)) -}}
{{- end -}}
{{- define "loraline.adminKeySecret" -}}
{{- .Values.bootstrap.existingSecret | default (printf "%s-admin-key" (include "loraline.fullname" .)) -}}
{{- end -}}

{{- define "loraline.natsUrl" -}}
{{- if .Values.nats.enabled -}}
{{ ternary "tls" "nats" (not (empty .Values.nats.tls.secret)) }}://{{ include "loraline.fullname" . }}-nats.{{ .Release.Namespace }}.svc:4222
{{- else -}}
{{- .Values.nats.url -}}
{{- end -}}
{{- end -}}

{{/* Secret with NATS' own CA (`ca.crt`), if there is one. */}}
{{- define "loraline.natsCaSecret" -}}
{{- .Values.nats.tls.caSecret | default .Values.nats.tls.secret -}}
{{- end -}}

{{/*
The credentials of a NATS user and of the object store, as files: sources of a projected volume. What is mounted as a file stands in no
description of a pod and in no environment that child processes inherit. (list root user more): `more` is a list of (list secret key file)
*/}}
{{- define "loraline.credentialSources" -}}
{{- $root := index . 0 -}}
{{- $files := list (list (include "loraline.natsAuthSecret" $root) (index . 1) (printf "nats-%s" $root.Values.nats.auth.kind)) -}}
{{- with include "loraline.natsCaSecret" $root }}{{ $files = append $files (list . "ca.crt" "nats-ca.crt") }}{{ end -}}
{{- with $root.Values.trust.caSecret }}{{ $files = append $files (list . "ca.crt" "ca.crt") }}{{ end -}}
{{- with $root.Values.objects.s3 -}}
{{- if and .bucket .existingSecret -}}
{{- $files = concat $files (list (list .existingSecret "accessKeyId" "s3-access-key-id") (list .existingSecret "secretAccessKey" "s3-secret-access-key")) -}}
{{- end -}}
{{- end -}}
{{- $sources := list -}}
{{- range concat $files (index . 2) -}}
{{- $sources = append $sources (dict "secret" (dict "name" (index . 0) "items" (list (dict "key" (index . 1) "path" (index . 2))))) -}}
{{- end -}}
{{- toYaml $sources -}}
{{- end -}}
{{/* (list root user more) */}}
{{- define "loraline.credentialsVolume" -}}
- name: credentials
  projected:
    defaultMode: 0440
    sources:
      {{- include "loraline.credentialSources" . | nindent 6 }}
{{- end -}}
{{- define "loraline.credentialsMount" -}}
- name: credentials
  mountPath: /credentials
  readOnly: true
{{- end -}}

{{/* Environment for NATS: URL, user, and where the password or other credentials are. (list root user) */}}
{{- define "loraline.natsEnv" -}}
{{- $root := index . 0 -}}
{{- $user := index . 1 -}}
- name: NATS_URL
  value: {{ include "loraline.natsUrl" $root | quote }}
{{- if eq $root.Values.nats.auth.kind "creds" }}
- name: NATS_CREDS_FILE
  value: /credentials/nats-creds
{{- else if eq $root.Values.nats.auth.kind "nkey" }}
- name: NATS_NKEY_FILE
  value: /credentials/nats-nkey
{{- else }}
- name: NATS_USER
  value: {{ $user }}
- name: NATS_PASS_FILE
  value: /credentials/nats-password
{{- end }}
- name: NATS_INBOX_PREFIX
  value: _INBOX_{{ $user }}
{{- if include "loraline.natsCaSecret" $root }}
- name: NATS_CA_FILE
  value: /credentials/nats-ca.crt
{{- end }}
{{- if $root.Values.trust.caSecret }}
# Node trusts them besides the usual ones, for S3, the collector, the issuer of tokens and mirrors of the hub.
- name: NODE_EXTRA_CA_CERTS
  value: /credentials/ca.crt
{{- end }}
{{- end -}}

{{- define "loraline.objectsEnv" -}}
{{- with .Values.objects.s3 -}}
{{- if .bucket }}
- name: S3_BUCKET
  value: {{ .bucket | quote }}
{{- with .endpoint }}
- name: S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .region }}
- name: S3_REGION
  value: {{ . | quote }}
{{- end }}
{{- if .existingSecret }}
- name: AWS_ACCESS_KEY_ID_FILE
  value: /credentials/s3-access-key-id
- name: AWS_SECRET_ACCESS_KEY_FILE
  value: /credentials/s3-secret-access-key
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "loraline.tracingEnv" -}}
{{- with .Values.tracing.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if .Values.tracing.keep }}
- name: LORALINE_TRACES
  value: nats
{{- end }}
{{- end -}}

{{/* "true" where engines may run: those of the values, and those of Engines, which may come at any time. */}}
{{- define "loraline.mayHaveEngines" -}}
{{- if or .Values.engines (and .Values.operator.enabled .Values.operator.engines.enabled .Values.bases.volume) }}true{{ end -}}
{{- end -}}

{{/* Environment of every service and courier: NATS, blobs, traces. (list root user) */}}
{{- define "loraline.lineEnv" -}}
{{- $root := index . 0 -}}
{{ include "loraline.natsEnv" . }}
{{- with include "loraline.objectsEnv" $root | trim }}
{{ . }}
{{- end }}
{{- with include "loraline.tracingEnv" $root | trim }}
{{ . }}
{{- end }}
{{- with include "loraline.quotasEnv" . | trim }}
{{ . }}
{{- end }}
{{- end -}}

{{/* Quotas of tenants, for services that hold tenants to them. Helm drops keys that are null, so values say "none". (list root user) */}}
{{- define "loraline.quotasEnv" -}}
{{- $quotas := deepCopy (index . 0).Values.quotas -}}
{{- $profiles := dict -}}
{{- range $name, $profile := (index . 0).Values.train.pods.profiles }}{{ $_ := set $profiles $name (pick $profile "tenants" "bases") }}{{ end -}}
{{- if $profiles }}{{ $_ := set $quotas "profiles" $profiles }}{{ end -}}
{{- if and (or $quotas.default $quotas.tenants $profiles) (has (index . 1) (list "gateway" "ingest" "tokenize" "train" "serve" "operator")) }}
- name: LORALINE_QUOTAS
  value: {{ toJson $quotas | replace "\"none\"" "null" | quote }}
{{- end }}
{{- end -}}

{{/* Whether some attempts are queued by Kueue. */}}
{{- define "loraline.usesKueue" -}}
{{- $pods := .Values.train.pods -}}
{{- $uses := or $pods.queueName $pods.queues -}}
{{- range concat (values $pods.byBase) (values $pods.profiles) }}{{ if .queueName }}{{ $uses = true }}{{ end }}{{ end -}}
{{- if $uses }}true{{ end -}}
{{- end -}}

{{/* Of the pod that runs it. */}}
{{- define "loraline.selfEnv" -}}
- name: HEALTH_PORT
  value: "8081"
- name: METRICS_PORT
  value: "9464"
- name: LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{- define "loraline.importEnv" -}}
{{- with .Values.imports -}}
{{- with .hubEndpoint }}
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if .hubTokenSecret }}
- name: HF_TOKEN_FILE
  value: /credentials/hub-token
{{- end }}
{{- with .allow }}
- name: LORALINE_IMPORT_ALLOW
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "loraline.basesVolume" -}}
- name: bases
  {{- if .Values.bases.volume }}
  {{- toYaml .Values.bases.volume | nindent 2 }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}
{{- define "loraline.basesMount" -}}
- name: bases
  mountPath: /bases
  readOnly: true
{{- end -}}

{{/* Security context of every container, as the restricted Pod Security Standard demands. */}}
{{- define "loraline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
{{- define "loraline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
# Kubernetes does not change the owner of all files of a large volume at every start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Merges a container's env with that of the values, which wins. (list env extra), both YAML lists */}}
{{- define "loraline.env" -}}
{{- $own := index . 0 | fromYamlArray -}}
{{- $extra := index . 1 | default list -}}
{{- $names := list -}}
{{- range $extra }}{{ $names = append $names .name }}{{ end -}}
{{- $env := list -}}
{{- range $own }}{{ if not (has .name $names) }}{{ $env = append $env . }}{{ end }}{{ end -}}
{{- toYaml (concat $env $extra) -}}
{{- end -}}

{{/* Merges `over` into `under` (both JSON): objects field by field, lists of named items by name; other values are replaced. */}}
{{- define "loraline.merged" -}}
{{- $under := index . 0 -}}
{{- $over := index . 1 -}}
{{- if and (kindIs "map" $under) (kindIs "map" $over) -}}
  {{- $made := dict -}}
  {{- range $key, $value := $under }}{{ $_ := set $made $key $value }}{{ end -}}
  {{- range $key, $value := $over -}}
    {{- if hasKey $under $key -}}
      {{- $_ := set $made $key (include "loraline.merged" (list (get $under $key) $value) | fromJson).value -}}
    {{- else -}}
      {{- $_ := set $made $key $value -}}
    {{- end -}}
  {{- end -}}
  {{- dict "value" $made | toJson -}}
{{- else if and (kindIs "slice" $under) (kindIs "slice" $over) (include "loraline.isNamed" $under) (include "loraline.isNamed" $over) -}}
  {{- $made := list -}}
  {{- $seen := dict -}}
  {{- range $item := $under -}}
    {{- $found := $item -}}
    {{- range $over }}{{ if eq .name $item.name }}{{ $found = (include "loraline.merged" (list $item .) | fromJson).value }}{{ end }}{{ end -}}
    {{- $made = append $made $found -}}
    {{- $_ := set $seen $item.name true -}}
  {{- end -}}
  {{- range $over }}{{ if not (hasKey $seen .name) }}{{ $made = append $made . }}{{ end }}{{ end -}}
  {{- dict "value" $made | toJson -}}
{{- else -}}
  {{- dict "value" $over | toJson -}}
{{- end -}}
{{- end -}}
{{- define "loraline.isNamed" -}}
{{- $named := gt (len .) 0 -}}
{{- range . }}{{ if not (kindIs "map" .) }}{{ $named = false }}{{ else if not .name }}{{ $named = false }}{{ end }}{{ end -}}
{{- if $named }}yes{{ end -}}
{{- end -}}

{{/*
A pod template with the settings that all pods share, and the component's own settings merged into it.
(dict "root" "component" "account" "settings" (values of the component) "labels" "annotations" "spec" (YAML of the rest of the pod's spec))
*/}}
{{- define "loraline.podTemplate" -}}
{{- $root := .root -}}
{{- $settings := .settings -}}
{{- $base := include "loraline.basePodTemplate" . | fromYaml -}}
{{- if $base.Error }}{{ fail (printf "pod of %s: %s" .component $base.Error) }}{{ end -}}
{{- (include "loraline.merged" (list $base ($settings.podTemplate | default dict)) | fromJson).value | toYaml -}}
{{- end -}}

{{- define "loraline.basePodTemplate" -}}
{{- $root := .root -}}
{{- $settings := .settings -}}
metadata:
  labels:
    {{- include "loraline.podLabels" (list $root .component) | nindent 4 }}
    {{- with .labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $settings.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) ($settings.podAnnotations | default dict) (.annotations | default dict) ($root.Values.commonAnnotations | default dict) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "loraline.fullname" $root }}-{{ .account }}
  automountServiceAccountToken: {{ has .account (list "train" "operator") }}
  # Without this, a Service called VLLM or NATS would set environment variables that those programs read.
  enableServiceLinks: false
  securityContext:
    {{- include "loraline.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with $settings.priorityClassName }}
  priorityClassName: {{ . | quote }}
  {{- end }}
  {{- with $settings.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $settings.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $settings.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  # Pods of a component are spread over nodes, so that the loss of one node does not end them all.
  topologySpreadConstraints:
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "loraline.selector" (list $root $.component) | nindent 10 }}
          {{- with $.labels }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    {{- end }}
  {{- .spec | nindent 2 }}
{{- end -}}

{{/* Probes of Loraline's processes: live while it answers, ready when it has NATS and its streams. */}}
{{- define "loraline.probes" -}}
livenessProbe:
  httpGet:
    path: /livez
    port: health
  # On a busy node a start takes minutes. An agent has no startup probe that would allow for it, since its engine would wait for that.
  initialDelaySeconds: 180
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: health
  periodSeconds: 2
  timeoutSeconds: 5
{{- end -}}

{{/*
A Deployment of a service.
(dict "root" "component" "settings" "env" (YAML list) "volumes" "mounts" (YAML lists or "") "ports" (YAML list or "") "annotations"
 "graceSeconds" "initContainers" (YAML or "") "lifecycle" (YAML or "")
 "secrets" (list of (list secret key file): files below /credentials, besides those that every service has))
*/}}
{{- define "loraline.deployment" -}}
{{- $root := .root -}}
{{- $settings := .settings -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "loraline.metadata" (list $root .component .component) | nindent 2 }}
spec:
  {{- /* Whoever scales it has the number for its own: an autoscaler, or whoever uses `kubectl scale`. */}}
  {{- if not (or (kindIs "invalid" $settings.replicas) (and $settings.autoscaling $settings.autoscaling.enabled)) }}
  replicas: {{ int $settings.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  strategy:
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      {{- include "loraline.selector" (list $root .component) | nindent 6 }}
  template:
    {{- $spec := include "loraline.serviceSpec" . }}
    {{- include "loraline.podTemplate" (dict "root" $root "component" .component "account" .component "settings" $settings "annotations" .annotations "spec" $spec) | nindent 4 }}
{{- end -}}

{{- define "loraline.serviceSpec" -}}
{{- $root := .root -}}
{{- $settings := .settings -}}
terminationGracePeriodSeconds: {{ .graceSeconds }}
{{- with .initContainers }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .component }}
    image: {{ include "loraline.image" (list $root "services") }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    args: [services/{{ .component }}/src/main.ts]
    # `kubectl describe` then shows the last log lines as the reason of an end.
    terminationMessagePolicy: FallbackToLogsOnError
    env:
      {{- include "loraline.env" (list (printf "%s\n- name: SPOOL_DIR\n  value: /tmp/spool\n%s" (include "loraline.selfEnv" $root) .env) $settings.env) | nindent 6 }}
    ports:
      - name: health
        containerPort: 8081
      - name: metrics
        containerPort: 9464
      {{- with .ports }}
      {{- . | nindent 6 }}
      {{- end }}
    # A process that starts on a busy node may take minutes before it answers at all, and must not be ended for that.
    startupProbe:
      httpGet:
        path: /livez
        port: health
      periodSeconds: 1
      timeoutSeconds: 5
      failureThreshold: 300
    {{- include "loraline.probes" $root | nindent 4 }}
    {{- with .lifecycle }}
    lifecycle:
      {{- . | nindent 6 }}
    {{- end }}
    resources:
      {{- toYaml (mergeOverwrite (dict) (.resources | default dict) $settings.resources) | nindent 6 }}
    securityContext:
      {{- include "loraline.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- include "loraline.credentialsMount" . | nindent 6 }}
      {{- with .mounts }}
      {{- . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {{ if .tmpSize }}{sizeLimit: {{ .tmpSize }}}{{ else }}{}{{ end }}
  {{- include "loraline.credentialsVolume" (list $root .component (.secrets | default list)) | nindent 2 }}
  {{- with .volumes }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* An engine with the defaults for settings that it lacks, as JSON. (list root engine) */}}
{{- define "loraline.engine" -}}
{{- $root := index . 0 -}}
{{- $engine := dict -}}
{{- range $key, $value := $root.Values.engineDefaults }}{{ $_ := set $engine $key $value }}{{ end -}}
{{- range $key, $value := index . 1 }}{{ $_ := set $engine $key $value }}{{ end -}}
{{- /* By single keys, of which null counts, too. */ -}}
{{- $wake := dict -}}
{{- range $key, $value := $root.Values.engineDefaults.wake }}{{ $_ := set $wake $key $value }}{{ end -}}
{{- range $key, $value := (index . 1).wake | default dict }}{{ $_ := set $wake $key $value }}{{ end -}}
{{- $_ := set $engine "wake" $wake -}}
{{- $engine | toJson -}}
{{- end -}}

{{/* With what an engine starts, in the form that serve and the check read, as JSON. Pods start anew when it is another. */}}
{{- define "loraline.engineStart" -}}
{{- $entry := dict "engine" .name "base" .base -}}
{{- range $key := list "kind" "derivedFrom" "maxLoraRank" "maxLoras" "maxCpuLoras" "maxModelLen" "tenants" "tasks" "promptLogprobs" "dtype" "quantization" "kvCacheDtype" "prefixCaching" "tensorParallelSize" "gpus" "toolCallParser" "extraArgs" "ignore" -}}
{{- $value := get $ $key -}}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (eq $value "")) (and (kindIs "slice" $value) (empty $value))) -}}
{{- $_ := set $entry $key $value -}}
{{- end -}}
{{- end -}}
{{- $entry | toJson -}}
{{- end -}}

{{/* The same, and how it is scaled to zero and back. */}}
{{- define "loraline.engineEntry" -}}
{{- $entry := include "loraline.engineStart" . | fromJson -}}
{{- if .wake.enabled -}}
{{- $wake := dict "waitSeconds" (int .wake.waitSeconds) -}}
{{- with .wake.idleAfterSeconds }}{{ $_ := set $wake "idleAfterSeconds" (int .) }}{{ end -}}
{{- $_ := set $entry "wake" $wake -}}
{{- $_ := set $entry "replicas" (ternary (int .autoscaling.minReplicas) (int (.replicas | default 1)) .autoscaling.enabled) -}}
{{- if .autoscaling.enabled }}{{ $_ := set $entry "autoscaled" true }}{{ end -}}
{{- end -}}
{{- $entry | toJson -}}
{{- end -}}

{{/* The list of engines that serve reads, as JSON. */}}
{{- define "loraline.engineEntries" -}}
{{- $entries := list -}}
{{- range .Values.engines }}{{ $entries = append $entries (include "loraline.engineEntry" (include "loraline.engine" (list $ .) | fromJson) | fromJson) }}{{ end -}}
{{- $entries | toJson -}}
{{- end -}}

{{- define "loraline.disruptionBudget" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "loraline.metadata" (list $root $component (index . 2) (dict "labels" (index . 3))) | nindent 2 }}
spec:
  maxUnavailable: {{ ternary 0 1 (index . 4) }}
  # A pod that does not work anyhow holds up no drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "loraline.selector" (list $root $component) | nindent 6 }}
      {{- with index . 3 }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}
