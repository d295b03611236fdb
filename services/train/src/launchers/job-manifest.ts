/** One attempt as a Kubernetes Job. Pure. */
import type { V1Container, V1Job, V1PodSpec, V1PodTemplateSpec } from "@kubernetes/client-node";
import { PermanentError } from "@loraline/runtime";
import { z } from "zod";
import type { AttemptRequest, AttemptSpec } from "../attempt/attempt-spec.ts";
import { trainMethodOf } from "../train-methods.ts";

const kubeObjects = z.array(z.record(z.string(), z.unknown())).default([]);

/** What of the settings may differ by base. */
const attemptOfBase = z
  .strictObject({
    gpuResource: z.string(),
    gpus: z.int().min(0),
    cpu: z.string(),
    memory: z.string(),
    ephemeralStorage: z.string(),
    nodeSelector: z.record(z.string(), z.string()),
    tolerations: z.array(z.record(z.string(), z.unknown())),
    priorityClassName: z.string(),
    queueName: z.string(),
    activeDeadlineSeconds: z.int().min(1),
    hangSeconds: z.int().min(10),
    jobLabels: z.record(z.string(), z.string()),
    jobAnnotations: z.record(z.string(), z.string()),
    podTemplate: z.record(z.string(), z.unknown()),
  })
  .partial();

/** How pods of attempts look on this cluster: the chart's `train` values, mounted as a file. Kubernetes' own names and meanings. */
export const trainPodSettings = z.strictObject({
  namespace: z.string().min(1).describe("Where attempts are made. The line's own Secrets should not be there."),
  tenantNamespaces: z
    .record(z.string(), z.string().min(1))
    .default({})
    .describe("Tenant to the namespace of its attempts, instead of `namespace`: what confines pods there confines them."),
  formerNamespaces: z
    .array(z.string().min(1))
    .default([])
    .describe("Where an earlier release made attempts: those that still run there are followed to their end."),
  image: z.string().min(1).describe("Courier and trainer."),
  imagePullPolicy: z.enum(["Always", "IfNotPresent", "Never"]).default("IfNotPresent"),
  imagePullSecrets: z.array(z.string()).default([]),
  gpuResource: z.string().default("nvidia.com/gpu"),
  gpus: z.int().min(0).default(1).describe("GPUs of an attempt whose run names no number."),
  cpu: z.string().default("4"),
  memory: z.string().default("32Gi"),
  ephemeralStorage: z.string().default("50Gi").describe("Shards, checkpoints and the adapter, while they are made."),
  serviceAccountName: z.string().default("default"),
  nodeSelector: z.record(z.string(), z.string()).default({}),
  tolerations: z.array(z.record(z.string(), z.unknown())).default([]),
  priorityClassName: z.string().optional(),
  activeDeadlineSeconds: z.int().min(1).optional().describe("An attempt that takes longer is ended; the next one resumes."),
  ttlSecondsAfterFinished: z.int().min(0).default(3600).describe("How long an ended Job is kept although nobody removed it."),
  terminationGracePeriodSeconds: z.int().min(1).default(120).describe("For the checkpoint that an attempt saves when it is told to end."),
  device: z
    .enum(["auto", "cpu"])
    .default("auto")
    .describe(
      "`auto`: an attempt that was given GPUs fails where CUDA shows none. `cpu`: it trains without them, as where GPUs are only pretended.",
    ),
  hangSeconds: z.int().min(10).default(1800).describe("A trainer without a sign of life for so long is ended; the next attempt goes on."),
  jobSet: z.boolean().default(false).describe("JobSet is installed: runs may ask for several `nodes`."),
  gpusTotal: z
    .int()
    .min(1)
    .optional()
    .describe("GPUs that attempts of all tenants use at once; the controller then decides who is next. Absent: the scheduler decides."),
  pendingPerTenant: z
    .int()
    .min(1)
    .default(8)
    .describe("Attempts of one tenant that may wait in the cluster at once; its further runs wait with the controller."),
  queueName: z
    .string()
    .optional()
    .describe("Kueue's LocalQueue: Jobs are made suspended, and Kueue admits them. `{tenant}` in it stands for the run's tenant."),
  queues: z.record(z.string(), z.string()).default({}).describe("Tenant to its LocalQueue, instead of queueName."),
  priorityClasses: z
    .record(z.string(), z.string())
    .default({})
    .describe("A run's priority, as a text, to the PriorityClass of its pods, instead of priorityClassName."),
  jobLabels: z.record(z.string(), z.string()).default({}).describe("Of the Job or JobSet itself; Loraline's own win."),
  jobAnnotations: z.record(z.string(), z.string()).default({}),
  byBase: z
    .record(z.string(), attemptOfBase)
    .default({})
    .describe("What differs for runs of a base. jobLabels, jobAnnotations and podTemplate are merged, the others replaced."),
  profiles: z
    .record(z.string(), attemptOfBase.omit({ gpus: true }))
    .default({})
    .describe("What differs for runs that ask for it by `profile`: as byBase, and it comes before that."),
  env: kubeObjects.describe("The trainer's environment, as in a container."),
  envFrom: kubeObjects,
  volumeMounts: kubeObjects.describe("Of the trainer's container."),
  volumes: kubeObjects.describe("Of the pod."),
  courier: z
    .strictObject({
      env: kubeObjects,
      envFrom: kubeObjects,
      volumeMounts: kubeObjects,
      resources: z.record(z.string(), z.unknown()).default({}),
    })
    .prefault({})
    .describe("The courier's container, which alone has credentials."),
  credentials: z
    .string()
    .optional()
    .describe("Secret of the courier, which the controller writes into the attempts' namespace; mounted at /credentials."),
  owner: z
    .string()
    .optional()
    .describe("ConfigMap of the namespace that attempts belong to: when it is deleted, as with the chart's release, they are too."),
  podTemplate: z
    .record(z.string(), z.unknown())
    .default({})
    .describe("Laid over the pod template last: objects merge, everything else replaces."),
});
export type TrainPodSettings = z.infer<typeof trainPodSettings> & {
  /** Of `owner`, as it is on this cluster. */
  ownerUid?: string | undefined;
};

export const labels = {
  component: "app.kubernetes.io/component",
  tenant: "loraline.dev/tenant",
  run: "loraline.dev/run",
  attempt: "loraline.dev/attempt",
  queue: "kueue.x-k8s.io/queue-name",
} as const;
/** Values of the label `component`: an attempt is a Job or a JobSet; the Job that a JobSet makes is a part of it. */
export const component = { attempt: "train-attempt", part: "train-attempt-part" } as const;
/** The pod's containers: the courier is the main one, whose end is the attempt's. The trainer is a sidecar, so that it ends after it. */
export const container = "courier";
export const trainerContainer = "trainer";

/** Whether some attempts are queued by Kueue. */
export const usesKueue = ({ queueName, queues, byBase, profiles }: TrainPodSettings): boolean =>
  queueName !== undefined ||
  Object.keys(queues).length > 0 ||
  [...Object.values(byBase), ...Object.values(profiles)].some((of) => of.queueName !== undefined);

/**
 * The settings for a run: those of its base over all others', and those of its profile over these.
 * @throws PermanentError PROFILE_NOT_ALLOWED: the operator has taken it away since the run was requested.
 */
function settingsOfRun(
  settings: TrainPodSettings,
  { base, profile }: Pick<AttemptRequest["runSpec"], "base" | "profile">,
): TrainPodSettings {
  const ofBase = withOwn(settings, settings.byBase[base] ?? {});
  if (profile === undefined) return ofBase;
  const own = settings.profiles[profile];
  if (own === undefined) {
    const message = `there is no profile "${profile}" any more (train.pods.profiles). The run waits until there is one again; or cancel it, and request it without.`;
    throw new PermanentError("PROFILE_NOT_ALLOWED", message);
  }
  const { priorityClassName, queueName } = own;
  // What the profile says itself also counts more than what the tenant or the run's priority says.
  return withOwn(
    {
      ...ofBase,
      ...(priorityClassName === undefined ? {} : { priorityClasses: {} }),
      ...(queueName === undefined ? {} : { queues: {} }),
    },
    own,
  );
}

function withOwn(settings: TrainPodSettings, own: z.output<typeof attemptOfBase>): TrainPodSettings {
  const { jobLabels, jobAnnotations, podTemplate, ...others } = own;
  return {
    ...settings,
    ...(others as Partial<TrainPodSettings>),
    jobLabels: { ...settings.jobLabels, ...jobLabels },
    jobAnnotations: { ...settings.jobAnnotations, ...jobAnnotations },
    podTemplate: merged(settings.podTemplate, podTemplate) as TrainPodSettings["podTemplate"],
  };
}

/** The LocalQueue of a tenant's attempts; undefined: they are not queued. */
const queueOf = (tenant: string, { queueName, queues }: TrainPodSettings): string | undefined =>
  queues[tenant] ?? queueName?.replaceAll("{tenant}", tenant);

/** The namespace of a tenant's attempts. */
export const namespaceOf = (
  { namespace, tenantNamespaces }: Pick<TrainPodSettings, "namespace" | "tenantNamespaces">,
  tenant: string,
): string => tenantNamespaces[tenant] ?? namespace;

/** Every namespace in which attempts are made. */
export const namespacesOf = ({ namespace, tenantNamespaces }: TrainPodSettings): string[] => [
  ...new Set([namespace, ...Object.values(tenantNamespaces)]),
];

/** What the courier alone sees: see attempt-files.ts. */
const courierDir = "/courier";
/** What both containers share: the trainer's socket, its folder, its log. */
const sharedDir = "/work";
const socket = `${sharedDir}/trainer.sock`;
/** Users of the containers. The group is the same, so that each reads what the other one writes for it; see trainer-files.ts. */
const users = { courier: 65_532, trainer: 65_533, group: 65_532 } as const;

/**
 * `backoffLimit: 0`: a Job is one attempt, and whether there is another is decided in `decide-run.ts`. The spec of the
 * attempt is in an environment variable, so that there is only one object to create and to delete.
 *
 * Courier and trainer are two containers with users of their own. The trainer works on a tenant's data, so it has no credentials: those are
 * mounted as files, in the courier's container alone.
 */
export function jobManifest(attempt: AttemptRequest, ofAll: TrainPodSettings): V1Job {
  const settings = settingsOfRun(ofAll, attempt.runSpec);
  const gpus = attempt.runSpec.gpus ?? settings.gpus;
  const queue = queueOf(attempt.tenant, settings);
  const priorityClassName = settings.priorityClasses[String(attempt.runSpec.priority ?? 0)] ?? settings.priorityClassName;
  const resources = { cpu: settings.cpu, memory: settings.memory, "ephemeral-storage": settings.ephemeralStorage };
  const named = {
    "app.kubernetes.io/name": "loraline",
    [labels.component]: component.attempt,
    [labels.tenant]: attempt.tenant,
    [labels.run]: attempt.runId.toLowerCase(),
    [labels.attempt]: String(attempt.attempt),
  };
  const annotations = {
    "loraline.dev/adapter": `${attempt.tenant}/${attempt.runSpec.adapter}`,
    ...(attempt.traceparent === null ? {} : { "loraline.dev/traceparent": attempt.traceparent }),
    // EKS gives each container a token for the service account's role, unless it is named here.
    "eks.amazonaws.com/skip-containers": trainerContainer,
  };
  const device = gpus === 0 ? {} : { [settings.gpuResource]: String(gpus) };
  const common = {
    image: settings.image,
    imagePullPolicy: settings.imagePullPolicy,
    // The reason why it should be tried again; or the last lines of the log.
    terminationMessagePolicy: "FallbackToLogsOnError",
  };
  const securityContext = (user: number) => ({
    runAsUser: user,
    runAsGroup: users.group,
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ["ALL"] },
  });
  const shared = { name: "work", mountPath: sharedDir };
  const trainer: V1Container = {
    ...common,
    name: trainerContainer,
    // A sidecar: on the pod's end it is told after the courier, which has it save a checkpoint first.
    restartPolicy: "Always",
    command: [
      "node",
      "--conditions=@loraline/source",
      "--import=/app/packages/runtime/src/heed-signals-main.ts",
      "services/train/src/trainer-main.ts",
    ],
    env: [
      ...(settings.env as never[]),
      { name: "TRAINER_SOCKET", value: socket },
      // Nothing outside of the work folder can be written.
      { name: "HOME", value: sharedDir },
      { name: "TMPDIR", value: sharedDir },
    ],
    envFrom: settings.envFrom,
    resources: {
      requests: { ...resources, ...device },
      limits: { memory: settings.memory, "ephemeral-storage": settings.ephemeralStorage, ...device },
    },
    securityContext: securityContext(users.trainer),
    volumeMounts: [
      shared,
      // Data loaders share tensors through it; the default of 64 MiB is too little for several GPUs.
      { name: "shm", mountPath: "/dev/shm" },
      ...(settings.volumeMounts as never[]),
    ],
  };
  const courier: V1Container = {
    ...common,
    name: container,
    args: [courierDir],
    env: [
      ...(settings.courier.env as never[]),
      { name: "COURIER_ATTEMPT", value: literal(JSON.stringify(forCourier(attempt, machineOf(attempt.runSpec, gpus, settings)))) },
      { name: "COURIER_INCARNATION", valueFrom: { fieldRef: { fieldPath: "metadata.uid" } } },
      { name: "COURIER_HANG_SECONDS", value: String(settings.hangSeconds) },
      { name: "COURIER_TRAINER_SOCKET", value: socket },
      { name: "HOME", value: courierDir },
      { name: "TMPDIR", value: courierDir },
    ],
    envFrom: settings.courier.envFrom,
    resources: settings.courier.resources,
    securityContext: securityContext(users.courier),
    volumeMounts: [
      shared,
      { name: "courier", mountPath: courierDir },
      ...(settings.credentials === undefined ? [] : [{ name: "credentials", mountPath: "/credentials", readOnly: true }]),
      ...(settings.courier.volumeMounts as never[]),
    ],
  };
  const spec: V1PodSpec = {
    restartPolicy: "Never",
    serviceAccountName: settings.serviceAccountName,
    automountServiceAccountToken: false,
    enableServiceLinks: false,
    shareProcessNamespace: false,
    terminationGracePeriodSeconds: settings.terminationGracePeriodSeconds,
    nodeSelector: settings.nodeSelector,
    tolerations: settings.tolerations,
    ...(priorityClassName === undefined ? {} : { priorityClassName }),
    imagePullSecrets: settings.imagePullSecrets.map((name) => ({ name })),
    securityContext: { runAsNonRoot: true, fsGroup: users.group, seccompProfile: { type: "RuntimeDefault" } },
    initContainers: [trainer],
    containers: [courier],
    volumes: [
      { name: "work", emptyDir: {} },
      { name: "courier", emptyDir: {} },
      { name: "shm", emptyDir: { medium: "Memory" } },
      ...(settings.credentials === undefined
        ? []
        : // Read by the group, to which the trainer's user belongs too: it is not mounted there.
          [{ name: "credentials", secret: { secretName: settings.credentials, defaultMode: 0o440 } }]),
      ...(settings.volumes as never[]),
    ],
  };
  const template: V1PodTemplateSpec = { metadata: { labels: named, annotations }, spec };
  return {
    metadata: {
      name: attempt.name,
      namespace: namespaceOf(settings, attempt.tenant),
      labels: { ...settings.jobLabels, ...named, ...(queue === undefined ? {} : { [labels.queue]: queue }) },
      annotations: { ...settings.jobAnnotations, ...annotations },
      ...(settings.owner === undefined || settings.ownerUid === undefined
        ? {}
        : { ownerReferences: [{ apiVersion: "v1", kind: "ConfigMap", name: settings.owner, uid: settings.ownerUid }] }),
    },
    spec: {
      backoffLimit: 0,
      ...(queue === undefined ? {} : { suspend: true }),
      ...(settings.activeDeadlineSeconds === undefined ? {} : { activeDeadlineSeconds: settings.activeDeadlineSeconds }),
      ttlSecondsAfterFinished: settings.ttlSecondsAfterFinished,
      template: merged(template, settings.podTemplate) as V1PodTemplateSpec,
    },
  };
}

/** Kubernetes puts other variables' values, secrets among them, where a value says `$(NAME)`: a run's own text must not ask for that. */
const literal = (value: string): string => value.replaceAll("$", "$$$$");

/** A process for each GPU, or the only one. */
function machineOf({ nodes }: AttemptSpec["runSpec"], gpus: number, settings: TrainPodSettings): AttemptSpec["machine"] {
  return {
    nodes: nodes ?? 1,
    processes: Math.max(1, gpus),
    device: settings.device === "cpu" ? "cpu" : gpus > 0 ? "cuda" : "auto",
    graceSeconds: settings.terminationGracePeriodSeconds,
  };
}

/** Without what only other stages read, which may be longer than Linux lets a variable be (128 KiB). */
function forCourier({ runSpec, ...others }: AttemptRequest, machine: AttemptSpec["machine"]): AttemptSpec {
  const { placement: _placement, metadata: _metadata, ...rest } = runSpec;
  const slim = { ...rest, method: trainMethodOf(runSpec).slim, tokenize: { ...runSpec.tokenize, system: undefined } };
  return { ...others, machine, runSpec: slim };
}

/** Objects merge field by field, lists of named things by their name; everything else replaces. */
export function merged(under: unknown, over: unknown): unknown {
  if (over === undefined) return under;
  if (isNamedList(under) && isNamedList(over)) {
    const names = [...new Set([...under, ...over].map(({ name }) => name))];
    return names.map((name) =>
      merged(
        under.find((item) => item.name === name),
        over.find((item) => item.name === name),
      ),
    );
  }
  if (!isObject(under) || !isObject(over)) return over;
  const keys = [...new Set([...Object.keys(under), ...Object.keys(over)])];
  return Object.fromEntries(keys.map((key) => [key, merged(under[key], over[key])]));
}
const isObject = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
const isNamedList = (value: unknown): value is { name: string }[] =>
  Array.isArray(value) && value.length > 0 && value.every((item) => isObject(item) && typeof item.name === "string");
