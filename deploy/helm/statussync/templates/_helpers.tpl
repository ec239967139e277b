{{- define "statussync.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "statussync.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "statussync.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "statussync.selectorLabels" -}}
app.kubernetes.io/name: {{ include "statussync.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "statussync.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "statussync.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "statussync.secretName" -}}
{{- .Values.auth.existingSecret | default (include "statussync.fullname" .) -}}
{{- end -}}

{{- define "statussync.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "statussync.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* The whole configuration: what the values say, and what only the chart can know. */}}
{{- define "statussync.config" -}}
{{- $config := deepCopy (.Values.config | default dict) -}}
{{- range $key := list "listen" "data" -}}
{{- if hasKey $config $key -}}
{{- fail (printf "config.%s is set by the chart; remove it" $key) -}}
{{- end -}}
{{- end -}}
{{- $auth := get $config "auth" | default dict -}}
{{- if hasKey $auth "tokens" -}}
{{- fail "config.auth.tokens is set by the chart from auth.tokens; name the tokens there" -}}
{{- end -}}
{{- $tokens := list -}}
{{- range .Values.auth.tokens -}}
{{- $tokens = append $tokens (dict "name" .name "role" .role "token_file" (printf "/run/secrets/statussync/%s" .name)) -}}
{{- end -}}
{{- $name := include "statussync.fullname" . -}}
{{- $hosts := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- if .Values.ingress.enabled -}}
{{- range .Values.ingress.hosts -}}{{- $hosts = append $hosts .host -}}{{- end -}}
{{- end -}}
{{- $hosts = concat $hosts (get $config "allowed_hosts" | default list) | uniq -}}
{{- $_ := set $config "listen" ":8080" -}}
{{- $_ := set $config "data" "/data" -}}
{{- $_ := set $config "allowed_hosts" $hosts -}}
{{- $_ := set $config "auth" (merge (dict "tokens" $tokens) $auth) -}}
{{- toYaml $config -}}
{{- end -}}
