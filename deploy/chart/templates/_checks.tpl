{{/* Values that contradict each other. The schema checks each value alone. */}}
{{- define "llama.check" -}}
{{- if not .Values.models }}
{{- fail "models is empty: set models.hostPath or models.claim" }}
{{- end }}
{{- $isRouter := eq .Values.mode "router" }}
{{- if and $isRouter .Values.model }}
{{- fail (printf "mode router serves all files of models: remove model %q" .Values.model) }}
{{- end }}
{{- if and (not $isRouter) (not .Values.model) }}
{{- fail (printf "mode %s needs model, a file below /models" .Values.mode) }}
{{- end }}
{{- if and (ne .Values.mode "node-store") (gt (int .Values.server.replicas) 1) }}
{{- fail (printf "mode %s has one server, not server.replicas %d: servers share weights in the mode node-store" .Values.mode (int .Values.server.replicas)) }}
{{- end }}
{{- $parts := list "alone" }}
{{- if eq .Values.mode "node-store" }}
{{- $parts = ternary (list "loader" "server") (list "server") .Values.loader.enabled }}
{{- if not (or .Values.loader.enabled .Values.store.path) }}
{{- fail "without a loader, store.path must name the store of another release" }}
{{- end }}
{{- end }}
{{- range $part := $parts }}
{{- $limits := get $.Values.plan $part }}
{{- if not $limits }}
{{- fail (printf "plan.%s is missing: add the output of `hugepages plan --format helm` to the values" $part) }}
{{- end }}
{{- $key := printf "hugepages-%s" $.Values.store.pageSize }}
{{- if and (ne $part "server") (not (hasKey $limits $key)) }}
{{- fail (printf "plan.%s lacks %s, the page size of the store" $part $key) }}
{{- end }}
{{- end }}
{{- range $name, $limits := merge (dict "rpc" .Values.rpc.limits) .Values.plan }}
{{- $size := get $limits "hugepages-1Gi" | default "1Gi" }}
{{- if and (hasSuffix "Mi" $size) (mod (trimSuffix "Mi" $size | int) 1024) }}
{{- fail (printf "hugepages-1Gi of %s is %s, which is not a number of whole pages" $name $size) }}
{{- end }}
{{- end }}
{{- if .Values.rpc.replicas }}
{{- if ne .Values.mode "one-pod" }}
{{- fail (printf "rpc.replicas needs the mode one-pod, not %s" .Values.mode) }}
{{- end }}
{{- if not .Values.rpc.limits }}
{{- fail "rpc.limits is missing: the huge pages and the memory of one worker" }}
{{- end }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor $isRouter }}
{{- fail "metrics.serviceMonitor does not work in the mode router, which answers /metrics for one named model only" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor (not .Values.metrics.enabled) }}
{{- fail "metrics.serviceMonitor needs metrics.enabled" }}
{{- end }}
{{- end }}
