{{- define "gr4ad.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "gr4ad.labels" -}}
app.kubernetes.io/name: gr4ad
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end -}}

{{- define "gr4ad.selector" -}}
app.kubernetes.io/name: gr4ad
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "gr4ad.image" -}}
{{- if .image }}{{ .image }}{{ else -}}
{{ .root.Values.image.registry }}/gr4ad-{{ .component }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Environment that every service shares; its names are those of the services' settings. */}}
{{- define "gr4ad.env" -}}
- {name: GR4AD_HOST, value: "0.0.0.0"}
- {name: GR4AD_PORT, value: {{ .port | quote }}}
- {name: GR4AD_ARTIFACT_STORE, value: {{ .root.Values.artifactStore.url | quote }}}
- {name: GR4AD_OTLP_ENDPOINT, value: {{ .root.Values.telemetry.otlpEndpoint | quote }}}
- {name: GR4AD_TRACE_SAMPLE_RATIO, value: {{ .root.Values.telemetry.sampleRatio | quote }}}
- {name: GR4AD_LOG_LEVEL, value: {{ .root.Values.logLevel | quote }}}
- {name: GR4AD_DRAIN_SECONDS, value: {{ .root.Values.drainSeconds | quote }}}
- {name: GR4AD_REFLECTION, value: {{ .root.Values.reflection | quote }}}
- {name: GR4AD_SID_ASSIGNER_ADDRESS, value: "{{ include "gr4ad.name" .root }}-sid-assigner:{{ .root.Values.sidAssigner.port }}"}
- {name: GR4AD_REWARD_LOGGER_ADDRESS, value: "{{ include "gr4ad.name" .root }}-reward-logger:{{ .root.Values.rewardLogger.port }}"}
- {name: GR4AD_RSPO_TRAINER_ADDRESS, value: "{{ include "gr4ad.name" .root }}-rspo-trainer:{{ .root.Values.rspoTrainer.port }}"}
{{- end -}}

{{- define "gr4ad.databaseEnv" -}}
- name: GR4AD_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ required "database.existingSecret: is empty: name the Secret that holds the database URL" .root.Values.database.existingSecret }}
      key: {{ .root.Values.database.key }}
{{- end -}}

{{- define "gr4ad.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* The port serves grpc.health.v1; readiness is what the service itself says of its dependencies. */}}
{{- define "gr4ad.probes" -}}
startupProbe:
  tcpSocket: {port: {{ .port }}}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc: {port: {{ .port }}}
  periodSeconds: 2
livenessProbe:
  tcpSocket: {port: {{ .port }}}
  periodSeconds: 10
  failureThreshold: 6
{{- end -}}

{{- define "gr4ad.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .root.Values.artifactStore.existingClaim }}
- {name: artifacts, mountPath: /artifacts}
{{- end }}
{{- end -}}

{{- define "gr4ad.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .root.Values.artifactStore.existingClaim }}
- name: artifacts
  persistentVolumeClaim:
    claimName: {{ .root.Values.artifactStore.existingClaim }}
{{- end }}
{{- end -}}

{{/* A Deployment and its Service. Called with root, component, image, port, replicas, resources. */}}
{{- define "gr4ad.service" -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "gr4ad.name" .root }}-{{ .component }}
  labels: {{- include "gr4ad.labels" . | nindent 4 }}
spec:
  replicas: {{ .replicas }}
  {{- if eq .component "rspo-trainer" }}
  # Training runs are done one at a time, so the old pod ends before the new one starts.
  strategy: {type: Recreate}
  {{- end }}
  selector:
    matchLabels: {{- include "gr4ad.selector" . | nindent 6 }}
  template:
    metadata:
      labels: {{- include "gr4ad.labels" . | nindent 8 }}
    spec:
      automountServiceAccountToken: false
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - {name: {{ . }}}
        {{- end }}
      {{- end }}
      # The service flips its health on SIGTERM, then finishes what is under way.
      terminationGracePeriodSeconds: {{ add .root.Values.drainSeconds 15 }}
      securityContext: {fsGroup: 10001}
      containers:
        - name: {{ .component }}
          image: {{ include "gr4ad.image" . }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          env:
            {{- include "gr4ad.env" . | nindent 12 }}
            {{- include "gr4ad.databaseEnv" . | nindent 12 }}
          ports:
            - {name: grpc, containerPort: {{ .port }}, protocol: TCP}
          {{- include "gr4ad.probes" . | nindent 10 }}
          # Endpoints are withdrawn while this waits, so that no new call comes to a server that drains.
          lifecycle:
            preStop:
              sleep: {seconds: 5}
          resources: {{- toYaml .resources | nindent 12 }}
          securityContext: {{- include "gr4ad.securityContext" . | nindent 12 }}
          volumeMounts: {{- include "gr4ad.volumeMounts" . | nindent 12 }}
      volumes: {{- include "gr4ad.volumes" . | nindent 8 }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "gr4ad.name" .root }}-{{ .component }}
  labels: {{- include "gr4ad.labels" . | nindent 4 }}
spec:
  selector: {{- include "gr4ad.selector" . | nindent 4 }}
  # gRPC keeps connections open: without a virtual address a client sees, and balances over, all pods.
  clusterIP: None
  ports:
    - {name: grpc, port: {{ .port }}, targetPort: grpc, appProtocol: kubernetes.io/h2c}
{{- end -}}
