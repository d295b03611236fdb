/** Pure: the Deployment, the Service and the PodDisruptionBudget of an Engine, out of the template that the chart renders with the release's own settings. */
import type { V1Deployment, V1Job, V1OwnerReference, V1PodDisruptionBudget, V1Service } from "@kubernetes/client-node";
import {
  engineKindName,
  engineSettings,
  type EngineResourceSpec,
  type EngineSettings,
  engineSettingsList,
  fnv1a,
  type Problem,
} from "@loraline/contracts";
import { z } from "zod";
import { madeBy } from "../decide-adapter.ts";
import { startArgs } from "./start-args.ts";

const quantities = z.record(z.string(), z.union([z.string(), z.number()]));
const resources = z.looseObject({ requests: quantities.optional(), limits: quantities.optional() });

/** What the ConfigMap `<release>-engine-template` holds as `template.json`. In its objects `__ENGINE__` and `__BASE__` stand for names. */
export const engineTemplate = z.object({
  deployment: z.custom<V1Deployment>((value) => typeof value === "object" && value !== null),
  service: z.custom<V1Service>((value) => typeof value === "object" && value !== null),
  /** For an engine of several replicas. null: the release makes none. */
  budget: z.custom<V1PodDisruptionBudget>((value) => typeof value === "object" && value !== null).nullish(),
  /** Whether an engine of one replica has one, too, which keeps its node from being drained. */
  keepSingle: z.boolean().default(false),
  /** Job of a Base. */
  base: z.custom<V1Job>((value) => typeof value === "object" && value !== null),
  kind: engineKindName,
  /** The chart's engineDefaults, as the list of engines has them. */
  defaults: engineSettings.omit({ engine: true, base: true }).partial(),
  replicas: z.int().nullish(),
  resources,
  gpuResource: z.string(),
  /** Engines of the release itself. */
  engines: engineSettingsList,
  /** ConfigMap that the operator writes, with the settings of all Engines, for serve and for the engines themselves. */
  settingsConfigMap: z.string(),
});
export type EngineTemplate = z.infer<typeof engineTemplate>;

/** The entry of an Engine in the list of engines that serve and the engine itself read; a problem, where it can be none. */
export function settingsOf(name: string, spec: EngineResourceSpec, template: EngineTemplate): EngineSettings | Problem {
  const { replicas: own, resources: _needs, nodeSelector: _where, ...given } = spec;
  const parsed = engineSettings.safeParse({ ...template.defaults, ...given, engine: name, kind: template.kind });
  if (parsed.success) {
    const { wake, ...settings } = parsed.data;
    const replicas = own ?? template.replicas ?? 1;
    // None when it is awake: it is off, and nobody waits for it. Whoever else scales it says 0 for now.
    return !wake || (replicas === 0 && wake.idleAfterSeconds) ? settings : { ...settings, wake, replicas: Math.max(1, replicas) };
  }
  return { code: "ENGINE_INVALID", message: z.prettifyError(parsed.error).replaceAll("\n", " "), param: "spec" };
}

/** Pods start anew when the settings are others, also those that are no arguments, but for those that say how many there are. */
const checksum = ({ wake: _wake, replicas: _replicas, ...settings }: EngineSettings): string =>
  (fnv1a(JSON.stringify(Object.entries(settings).toSorted(([a], [b]) => (a < b ? -1 : 1)))) >>> 0).toString(16);

interface EngineObjects {
  deployment: V1Deployment;
  service: V1Service;
  /** Absent: of an engine with one replica it would forbid nothing, or every drain. */
  budget?: V1PodDisruptionBudget;
}

/** @param owner - the template's ConfigMap: with the release its objects go, too. */
export function engineObjects(of: {
  settings: EngineSettings;
  spec: EngineResourceSpec;
  template: EngineTemplate;
  namespace: string;
  owner: V1OwnerReference;
}): EngineObjects {
  const { settings, spec, template, namespace, owner } = of;
  // Both names are checked: they hold no quotes.
  const filled = <T>(object: T): T =>
    JSON.parse(JSON.stringify(object).replaceAll("__ENGINE__", settings.engine).replaceAll("__BASE__", settings.base)) as T;
  /** Of a copy. */
  const ours = <T extends V1Deployment | V1Service | V1PodDisruptionBudget>(object: T): T => {
    const metadata = object.metadata ?? {};
    const { "helm.sh/chart": _chart, ...labels } = metadata.labels ?? {};
    metadata.namespace = namespace;
    metadata.labels = { ...labels, "app.kubernetes.io/managed-by": madeBy["app.kubernetes.io/managed-by"] };
    metadata.ownerReferences = [owner];
    return object;
  };
  const deployment = ours(filled(template.deployment));
  const pod = deployment.spec?.template;
  const container = pod?.spec?.containers.find(({ name }) => name === template.kind);
  if (deployment.spec === undefined || pod?.spec === undefined || container === undefined)
    throw new Error(`the template of engines has no container ${template.kind}`);
  const replicas = spec.replicas ?? template.replicas;
  if (replicas === undefined || replicas === null || settings.wake?.idleAfterSeconds) delete deployment.spec.replicas;
  else deployment.spec.replicas = replicas;
  const metadata = (pod.metadata ??= {});
  metadata.annotations = { ...metadata.annotations, "checksum/engine": checksum(settings) };
  if (spec.nodeSelector !== undefined) pod.spec.nodeSelector = spec.nodeSelector;
  container.args = startArgs[template.kind](settings);
  if (spec.resources !== undefined || spec.gpus !== undefined) {
    const gpus = settings.gpus ?? 0;
    const given = spec.resources ?? template.resources;
    const withGpus = (part: Record<string, string | number> | undefined) =>
      gpus > 0 ? { ...part, [template.gpuResource]: String(gpus) } : part;
    const needs = { ...given, requests: withGpus(given.requests), limits: withGpus(given.limits) };
    container.resources = JSON.parse(JSON.stringify(needs)) as NonNullable<typeof container.resources>;
  }
  const service = ours(filled(template.service));
  // Absent: an autoscaler says how many, and the Engine names no number yet.
  const isSingle = replicas !== undefined && replicas !== null && replicas < 2;
  if (!template.budget || (isSingle && !template.keepSingle)) return { deployment, service };
  const budget = ours(filled(template.budget));
  if (budget.spec !== undefined) budget.spec.maxUnavailable = isSingle ? 0 : 1;
  return { deployment, service, budget };
}
