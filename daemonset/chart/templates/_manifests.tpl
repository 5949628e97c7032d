{{- /* The documents of a file, one by one as text. */ -}}
{{- define "documents" -}}
{{- regexSplit "(?m)^---$" (.root.Files.Get .file | required (printf "%s is not in the chart" .file)) -1 | toJson -}}
{{- end -}}

{{- /* The agent's configuration: what was given, over what the chosen parts need. */ -}}
{{- define "config" -}}
{{- $config := dict -}}
{{- if .Values.repair.enabled -}}
{{- $_ := set $config "repair" (dict "reset_gpu" "gpu-reset" "reboot_node" "node-reboot") -}}
{{- end -}}
{{- $presets := list -}}
{{- range $name, $on := .Values.presets -}}{{- if $on -}}
{{- $presets = append $presets $name -}}
{{- $config = mergeOverwrite $config (index ($.Files.Get "presets.json" | fromJson) $name).config -}}
{{- end -}}{{- end -}}
{{- if $presets -}}{{- $_ := set $config "presets" $presets -}}{{- end -}}
{{- if .Values.gate.enabled -}}{{- $_ := set $config "gate" (dict "enabled" true) -}}{{- end -}}
{{- if .Values.hardened.enabled -}}
{{- $_ := set $config "drain" (dict "eviction" "ask_then_delete") -}}
{{- end -}}
{{- $sources := dict -}}
{{- if .Values.dcgm.enabled -}}
{{- $_ := set $sources "dcgm" (dict "address" "nvidia-dcgm.gpu-operator.svc:5555" "bindings" "/host/dcgm/bindings" "library" "/host/lib") -}}
{{- end -}}
{{- if .Values.trace.enabled -}}
{{- $_ := set $sources "trace" (dict "enabled" true) -}}
{{- end -}}
{{- if $sources -}}{{- $_ := set $config "sources" $sources -}}{{- end -}}
{{- mergeOverwrite $config (deepCopy .Values.config) | toYaml -}}
{{- end -}}

{{- define "image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
