{{- define "llama.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "llama.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "llama.labels" -}}
{{ include "llama.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "llama.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* What all pods have in common. */}}
{{- define "llama.pod" -}}
automountServiceAccountToken: false
# Variables of Services could be taken for LLAMA_ARG_*.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "llama.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.user }}
runAsGroup: {{ int64 .Values.user }}
seccompProfile:
  {{- if .Values.seccomp.localhostProfile }}
  type: Localhost
  localhostProfile: {{ .Values.seccomp.localhostProfile | quote }}
  {{- else }}
  type: RuntimeDefault
  {{- end }}
{{- end }}

{{- define "llama.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Requests equal limits: Kubernetes demands it for huge pages, and needs it for the QoS class Guaranteed. */}}
{{- define "llama.resources" -}}
{{- $all := merge (dict) .limits }}
{{- with .cpu }}
{{- $_ := set $all "cpu" (toString .) }}
{{- end -}}
limits:
  {{- toYaml $all | nindent 2 }}
requests:
  {{- toYaml $all | nindent 2 }}
{{- end }}

{{/* A container that only runs a command, and takes no huge page. */}}
{{- define "llama.smallResources" -}}
{{ include "llama.resources" (dict "limits" (dict "memory" "64Mi") "cpu" (ternary "100m" "" (not (empty .cpu)))) }}
{{- end }}

{{- define "llama.storePath" -}}
{{- $size := ternary "1G" "2M" (eq .Values.store.pageSize "1Gi") -}}
{{- if ne .Values.mode "node-store" -}}
/hugepages/llama-{{ int64 .Values.user }}
{{- else -}}
{{ .Values.store.path | default (printf "/run/llama-hugepages/%s-%s/%s" .Release.Namespace (include "llama.name" .) $size) }}
{{- end -}}
{{- end }}

{{- define "llama.modelsVolume" -}}
- name: models
  {{- if .Values.models.hostPath }}
  hostPath:
    path: {{ .Values.models.hostPath | quote }}
    type: Directory
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.models.claim }}
    readOnly: true
  {{- end }}
{{- end }}

{{- define "llama.modelsMount" -}}
- name: models
  mountPath: /models
  readOnly: true
{{- end }}

{{/* llama.cpp counts the CPUs of the node, not those of the container. */}}
{{- define "llama.threads" -}}
{{- if regexMatch "^[1-9][0-9]*$" (toString .Values.server.cpu) }}
- name: LLAMA_ARG_THREADS
  value: {{ toString .Values.server.cpu | quote }}
{{- end }}
{{- end }}

{{- define "llama.workers" -}}
{{- $name := printf "%s-rpc" (include "llama.name" .) -}}
{{- $workers := list -}}
{{- range $i := until (int .Values.rpc.replicas) -}}
{{- $workers = append $workers (printf "%s-%d.%s:%d" $name $i $name (int $.Values.rpc.port)) -}}
{{- end -}}
{{ join "," $workers }}
{{- end }}

{{- define "llama.serverEnv" -}}
- name: LLAMA_ARG_HOST
  value: 0.0.0.0
- name: LLAMA_ARG_PORT
  value: "8080"
- name: LLAMA_ARG_HUGEPAGES
  value: "1"
- name: LLAMA_ARG_HUGEPAGE_POLICY
  value: require
- name: LLAMA_ARG_HUGEPAGE_STORE
  value: {{ include "llama.storePath" . | quote }}
{{- if eq .Values.mode "router" }}
- name: LLAMA_ARG_MODELS_DIR
  value: /models
- name: LLAMA_ARG_MODELS_MAX
  value: {{ .Values.router.modelsMax | quote }}
{{- else }}
- name: LLAMA_ARG_MODEL
  value: {{ printf "/models/%s" .Values.model | quote }}
{{- end }}
{{- with include "llama.threads" . | trim }}
{{ . }}
{{- end }}
{{- if .Values.rpc.replicas }}
- name: LLAMA_ARG_RPC
  value: {{ include "llama.workers" . | quote }}
{{- end }}
{{- if .Values.metrics.enabled }}
- name: LLAMA_ARG_ENDPOINT_METRICS
  value: "1"
{{- end }}
{{- with .Values.server.apiKeySecret }}
- name: LLAMA_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: api-key
{{- end }}
{{- end }}
