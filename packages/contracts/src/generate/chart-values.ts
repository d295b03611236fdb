/**
 * The schema of the chart's values, from which `values.schema.json` is made, so that Helm refuses misspelt keys. values.yaml lists all keys
 * and explains them. Rules about several values together are checked in templates/checks.yaml, with messages in sentences.
 */
import { z } from "zod";
import { engineWake } from "../engine.ts";
import { engineSettings } from "./engine-settings.ts";
import { alerts } from "../monitoring/alerts.ts";
import { tenantName } from "../names.ts";
import { streamLimits } from "../events/streams.ts";
import { quotaShape } from "../quotas.ts";
import { type KubernetesShape, resourceName, shapeKey } from "./kubernetes-shapes.ts";

const text = z.string();
const dnsLabel = z.string().regex(/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/);
const imageDigest = z.string().regex(/^(sha256:[0-9a-f]{64})?$/);
const strings = z.record(z.string(), z.string());
const object = z.record(z.string(), z.unknown());
/** An object of Kubernetes' own API. `withKubernetes` puts its schema there, so that Helm refuses what the API server would drop in silence. */
const kubernetes = (name: KubernetesShape) => z.unknown().meta({ [shapeKey]: name });
const listOf = (name: KubernetesShape) => z.array(kubernetes(name));
const env = listOf("io.k8s.api.core.v1.EnvVar");
const volumes = listOf("io.k8s.api.core.v1.Volume");
const volumeMounts = listOf("io.k8s.api.core.v1.VolumeMount");
const envFrom = listOf("io.k8s.api.core.v1.EnvFromSource");
const tolerations = listOf("io.k8s.api.core.v1.Toleration");
const peers = listOf("io.k8s.api.networking.v1.NetworkPolicyPeer");
const egressRules = listOf("io.k8s.api.networking.v1.NetworkPolicyEgressRule");
const volume = kubernetes("io.k8s.api.core.v1.Volume");
const podTemplate = kubernetes("io.k8s.api.core.v1.PodTemplateSpec");
const count = z.int().min(0);
const atLeastOne = z.int().min(1);
/** May be null, because Helm drops keys that are null. */
const bytes = z.int().min(1).nullish();
const days = z.int().min(1).max(3660).nullish();
/** A quantity in Kubernetes' notation. */
const quantity = z.union([z.number(), z.string().regex(/^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$/)]);
/** A misspelt resource is one that no node has, and one of a device has a domain. */
const quantities = z.record(z.string().regex(resourceName), quantity);
const resources = z.strictObject({
  requests: quantities.optional(),
  limits: quantities.optional(),
  claims: listOf("io.k8s.api.core.v1.ResourceClaim").optional(),
});

/** `none` stands for null, because Helm drops keys that are null. */
const quotas = z.strictObject(
  Object.fromEntries(Object.entries(quotaShape).map(([name, schema]) => [name, z.union([z.literal("none"), schema])])),
);

/** Values that every pod has. */
const pod = {
  nodeSelector: strings,
  tolerations,
  affinity: kubernetes("io.k8s.api.core.v1.Affinity"),
  priorityClassName: text,
  podAnnotations: strings,
  podLabels: strings,
  podTemplate,
};
/** null leaves the number to whoever scales it: an autoscaler, or `kubectl scale`. */
const replicas = count.nullish();
const service = { replicas, env, resources, ...pod };
const scaledBetween = { enabled: z.boolean(), minReplicas: atLeastOne, maxReplicas: atLeastOne };
const metrics = listOf("io.k8s.api.autoscaling.v2.MetricSpec");
/** As in KEDA's ScaledObject. */
const triggers = z
  .array(
    z.strictObject({
      type: z.string().min(1),
      name: z.string().min(1).optional(),
      metadata: strings,
      metricType: z.enum(["AverageValue", "Value", "Utilization"]).optional(),
      useCachedMetrics: z.boolean().optional(),
      authenticationRef: z
        .strictObject({ name: z.string().min(1), kind: z.enum(["TriggerAuthentication", "ClusterTriggerAuthentication"]).optional() })
        .optional(),
    }),
  )
  .optional();
const autoscaling = z.strictObject({ ...scaledBetween, triggers, targetCPU: z.int().min(1).max(1000).nullish(), metrics });

const { kind, maxLoras, maxCpuLoras, maxLoraRank, maxModelLen } = engineSettings.shape;
const { dtype, tensorParallelSize, gpus, quantization, kvCacheDtype, toolCallParser, extraArgs, ignore } = engineSettings.shape;
const wake = z.strictObject({ enabled: z.boolean(), ...engineWake.shape });
/** A value that may be missing: in Helm's values `""` or null stands for a missing value. */
const orEmpty = <T extends z.ZodType>(schema: T) => z.union([z.literal(""), schema]);
const engineKeys = {
  kind: kind.unwrap().unwrap(),
  replicas,
  image: z.string().min(1),
  imageDigest,
  command: z.array(z.string()),
  maxLoras,
  maxCpuLoras,
  maxLoraRank,
  maxModelLen,
  dtype: dtype.unwrap(),
  quantization: orEmpty(quantization.unwrap()),
  kvCacheDtype: orEmpty(kvCacheDtype.unwrap()),
  prefixCaching: z.boolean().nullish(),
  tensorParallelSize: tensorParallelSize.unwrap(),
  gpus: gpus.unwrap(),
  gpuResource: z.string().min(1),
  tenants: z.array(tenantName),
  tasks: z.array(z.enum(["generate", "embed"])).min(1),
  promptLogprobs: z.boolean().nullish(),
  toolCallParser: orEmpty(toolCallParser.unwrap()),
  extraArgs: extraArgs.unwrap(),
  ignore: ignore.unwrap(),
  env,
  resources,
  autoscaling: z.strictObject({ ...scaledBetween, minReplicas: count, triggers, metrics }),
  wake,
  startupSeconds: atLeastOne,
  maxUnavailable: z.union([count, z.string().regex(/^[0-9]+%$/)]),
  maxSurge: z.union([count, z.string().regex(/^[0-9]+%$/)]),
  volumes,
  volumeMounts,
  ...pod,
};

/** Of pods of attempts: what may differ by base. */
const attemptOfBase = {
  gpuResource: z.string().min(1),
  gpus: count,
  cpu: quantity,
  memory: quantity,
  ephemeralStorage: quantity,
  nodeSelector: strings,
  tolerations,
  priorityClassName: text,
  activeDeadlineSeconds: atLeastOne.nullish(),
  hangSeconds: z.int().min(10),
  queueName: z.string().regex(/^([a-z0-9]([a-z0-9.-]|\{tenant\})*|\{tenant\}([a-z0-9.-])*)?$/),
  jobLabels: strings,
  jobAnnotations: strings,
  podTemplate,
};

export const chartValues = z.strictObject({
  keda: z.strictObject({
    enabled: z.boolean(),
    prometheus: z.string().regex(/^(https?:\/\/[^\s]+)?$/),
    pollingSeconds: atLeastOne,
    cooldownSeconds: count,
  }),
  /** Helm's own key, which it gives to every chart that is used as a part of another. */
  global: object.optional(),
  fullnameOverride: z.string().regex(/^([a-z]([a-z0-9-]{0,38}[a-z0-9])?)?$/),
  commonLabels: strings,
  commonAnnotations: strings,
  logLevel: z.enum(["trace", "debug", "info", "warn", "error"]),
  image: z.strictObject({
    registry: z.string().min(1),
    tag: text,
    pullPolicy: z.enum(["Always", "IfNotPresent", "Never"]),
    pullSecrets: z.array(z.string()),
    services: text,
    trainer: text,
    agent: text,
    nats: z.string().min(1),
    mirror: text,
    digest: z.strictObject({ services: imageDigest, trainer: imageDigest, agent: imageDigest, nats: imageDigest }),
  }),
  bootstrap: z.strictObject({ tenant: orEmpty(tenantName), existingSecret: text }),
  engineKey: z.strictObject({ existingSecret: text }),
  audit: z.strictObject({ days: z.int().min(1).max(36_500) }),
  lineSecret: z.strictObject({ existingSecret: text }),
  bases: z.strictObject({ volume }),
  objects: z.strictObject({
    s3: z.strictObject({ bucket: text, endpoint: text, region: text, existingSecret: text }),
  }),
  tracing: z.strictObject({
    keep: z.boolean(),
    otlpEndpoint: z.string().regex(/^(https?:\/\/.*)?$/),
    chatShare: z.number().min(0).max(1).nullish(),
  }),
  trust: z.strictObject({ caSecret: text }),
  imports: z.strictObject({
    hubEndpoint: z.string().regex(/^(https?:\/\/.*)?$/),
    hubTokenSecret: text,
    allow: z.array(z.string()),
    maxBytes: bytes,
  }),
  quotas: z.strictObject({ default: quotas, tenants: z.record(tenantName, quotas) }),
  serviceAccounts: z.partialRecord(
    z.enum(["gateway", "ingest", "tokenize", "train", "train-attempt", "serve", "engine", "operator", "streams", "nats"]),
    strings,
  ),
  nats: z.strictObject({
    enabled: z.boolean(),
    url: text,
    monitors: z.array(z.string().regex(/^https?:\/\//)),
    replicas: z.literal([1, 3, 5]),
    tls: z.strictObject({ secret: text, caSecret: text }),
    auth: z.strictObject({ existingSecret: text, kind: z.enum(["password", "creds", "nkey"]) }),
    tenants: z.array(z.strictObject({ name: tenantName, namespaces: z.array(dnsLabel).optional() })),
    persistence: z.strictObject({
      enabled: z.boolean(),
      size: z.string().regex(/^[1-9][0-9]*(Mi|Gi|Ti)$/),
      storageClassName: text.nullish(),
      existingClaim: text,
      emptyDirSize: z.string().regex(/^[1-9][0-9]*(Mi|Gi|Ti)$/),
      syncInterval: z.string().regex(/^(always|[1-9][0-9]*(ms|s|m))$/),
    }),
    limits: z.partialRecord(streamLimits.def.keyType, z.string().regex(/^[1-9][0-9]*(Mi|Gi|Ti)$/)),
    resources,
    ...pod,
  }),
  streams: z.strictObject({ env, resources, ...pod }),
  gateway: z.strictObject({
    ...service,
    autoscaling,
    uploadLimitBytes: bytes,
    bodyLimitBytes: bytes,
    tmpSize: z.string().regex(/^([1-9][0-9]*(Mi|Gi|Ti))?$/),
    keyMaxDays: days,
    accessLog: z.enum(["all", "errors", "none"]),
    replicaHosts: z.array(text).min(1),
    corsOrigins: z.array(z.string().regex(/^(\*|https?:\/\/[^/\s,]+)$/)),
    oidc: z.strictObject({
      issuer: z.string().regex(/^(https?:\/\/.*)?$/),
      audience: text,
      tenantClaim: text,
      scopeClaim: text,
      tokenTypes: z.array(z.string().regex(/^[\w.+/-]+$/)).min(1),
      maxTokenSeconds: z.int().min(60),
      keyMaxDays: z.int().min(1).max(3660),
      clientId: text,
      clientSecret: text,
      scopes: text,
      parameters: text,
    }),
    consoleOrigin: z.string().regex(/^(https?:\/\/[^/\s]+)?$/),
    tls: z.strictObject({ secret: text }),
    service: z.strictObject({
      type: z.enum(["ClusterIP", "NodePort", "LoadBalancer"]),
      port: z.int().min(1).max(65_535),
      annotations: strings,
    }),
    ingress: z.strictObject({
      enabled: z.boolean(),
      className: text,
      host: text,
      tlsSecret: text,
      controller: z.enum(["", "nginx", "haproxy", "alb"]),
      timeoutSeconds: atLeastOne,
      annotations: strings,
    }),
    httpRoute: z.strictObject({
      enabled: z.boolean(),
      parentRefs: z.array(
        z.strictObject({
          group: text.optional(),
          kind: text.optional(),
          name: z.string().min(1),
          namespace: text.optional(),
          sectionName: text.optional(),
          port: z.int().min(1).max(65_535).optional(),
        }),
      ),
      hostnames: z.array(z.string().min(1)),
      timeoutSeconds: atLeastOne,
      annotations: strings,
    }),
  }),
  ingest: z.strictObject(service),
  tokenize: z.strictObject({ ...service, autoscaling }),
  train: z.strictObject({
    ...service,
    namespace: orEmpty(dnsLabel),
    createNamespace: z.boolean(),
    tenantNamespaces: z.record(tenantName, dnsLabel),
    formerNamespaces: z.array(dnsLabel),
    pods: z.strictObject({
      ...attemptOfBase,
      device: z.enum(["auto", "cpu"]),
      ttlSecondsAfterFinished: count,
      terminationGracePeriodSeconds: atLeastOne,
      gpusTotal: atLeastOne.nullish(),
      pendingPerTenant: atLeastOne,
      queues: z.record(tenantName, dnsLabel),
      priorityClasses: z.record(z.string().regex(/^-?[0-9]+$/), z.string().min(1)),
      byBase: z.record(z.string(), z.strictObject(attemptOfBase).partial()),
      profiles: z.record(
        dnsLabel,
        z
          .strictObject({ ...attemptOfBase, tenants: z.array(tenantName), bases: z.array(z.string().min(1)) })
          .omit({ gpus: true })
          .partial(),
      ),
      jobSet: z.boolean(),
      basesVolume: volume,
      env,
      envFrom,
      volumes,
      volumeMounts,
      courier: z.strictObject({ env, envFrom, volumeMounts, resources }),
    }),
  }),
  serve: z.strictObject(service),
  operator: z.strictObject({
    ...service,
    enabled: z.boolean(),
    engines: z.strictObject({ enabled: z.boolean() }),
    bases: z.strictObject({ volume, resources, podTemplate }),
    namespaces: z.array(dnsLabel),
    tenants: z.record(dnsLabel, tenantName),
  }),
  agent: z.strictObject({ env, resources }),
  engines: z.array(
    z.strictObject({
      name: engineSettings.shape.engine,
      base: engineSettings.shape.base,
      derivedFrom: orEmpty(engineSettings.shape.derivedFrom.unwrap()).optional(),
      ...z.strictObject(engineKeys).partial().shape,
      wake: wake.partial().optional(),
      nodes: atLeastOne.optional(),
      adaptersVolume: volume.optional(),
    }),
  ),
  engineDefaults: z.strictObject(engineKeys),
  test: z.strictObject({ base: text, steps: atLeastOne, env, resources, ...pod }),
  monitoring: z.strictObject({
    podMonitors: z.strictObject({ enabled: z.boolean(), interval: z.string().regex(/^[0-9]+(ms|s|m)$/), labels: strings }),
    rules: z.strictObject({
      enabled: z.boolean(),
      labels: strings,
      runbookUrl: text,
      alerts: z.partialRecord(
        z.enum(alerts.map(({ name }) => name)),
        z.strictObject({
          enabled: z.boolean().optional(),
          for: z
            .string()
            .regex(/^[0-9]+(s|m|h|d)$/)
            .optional(),
          expr: z.string().min(1).optional(),
          labels: strings.optional(),
        }),
      ),
      extraGroups: z.array(object),
    }),
    dashboards: z.strictObject({ enabled: z.boolean(), labels: strings }),
  }),
  networkPolicy: z.strictObject({
    enabled: z.boolean(),
    gatewayFrom: peers,
    metricsFrom: peers,
    egress: z.strictObject({ enabled: z.boolean(), apiServer: egressRules, extra: egressRules }),
  }),
  podDisruptionBudget: z.strictObject({ enabled: z.boolean(), keepSingle: z.boolean() }),
  aggregatedRoles: z.strictObject({ enabled: z.boolean() }),
});
