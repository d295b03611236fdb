/** Publishes a FineTune's commands: first its dataset, then `run.requested`, with the same events as every other API. */
import { type Bus, type Received } from "@loraline/bus";
import {
  buckets,
  datasetImportRequested,
  type DatasetOfResource,
  datasetReceived,
  everyKeyOf,
  isTraceparent,
  type Problem,
  runRequested,
  traceparentAnnotation,
} from "@loraline/contracts";
import { judgeRunSpec } from "@loraline/models";
import type { Kube } from "@loraline/kube";
import type { Objects } from "@loraline/objects";
import { parseFetchUrl, PermanentError, problemOf, type Telemetry, traceIdOf } from "@loraline/runtime";
import { z } from "zod";
import type { Wanted } from "./decide-fine-tune.ts";
import type { Ids } from "./ids.ts";
import type { LineView } from "./line-view.ts";
import { configMaps, type FineTune } from "./resources.ts";

export interface RequestRunDeps {
  bus: Bus;
  kube: Kube;
  objects: Objects;
  telemetry: Telemetry;
  line: LineView;
  tenant: string;
  namespace: string;
  /** @throws PermanentError QUOTA_… while the tenant may not request a run. */
  admitRun(tenant: string): Promise<void>;
}

/** The problems of a run spec with the engines, and with addresses that may not be fetched. Nothing is published while there are any. */
export function judgeWanted({ spec, dataset, validation }: Wanted, { line, tenant }: Pick<RequestRunDeps, "line" | "tenant">): Problem[] {
  const problems = judgeRunSpec(spec, line.engines(tenant));
  for (const [param, of] of Object.entries({ dataset, validation })) {
    if (of?.source === undefined || !("url" in of.source)) continue;
    try {
      parseFetchUrl(of.source.url);
    } catch (error) {
      problems.push({ ...problemOf(error), param: `${param}.source.url` });
    }
  }
  return problems;
}

/**
 * May be repeated after a crash at any point: the ids are derived from the resource, and events that were published are not published again.
 * @throws PermanentError CONFIGMAP_… while the data is not there, QUOTA_… while the tenant has all that it may have.
 */
export async function requestRun(object: FineTune, wanted: Wanted, ids: Ids, deps: RequestRunDeps): Promise<void> {
  const { bus, telemetry, tenant, namespace } = deps;
  await deps.admitRun(tenant);
  const name = object.metadata?.name ?? "";
  const by = `finetune/${namespace}/${name}`;
  const attributes = { "loraline.tenant": tenant, "loraline.run.id": ids.run, "loraline.dataset.id": wanted.spec.dataset ?? "" };
  await telemetry.span(`finetune ${name}`, { ...(await traceOf(object, wanted, ids, deps)), attributes }, async () => {
    for (const part of ["dataset", "validation"] as const) {
      const of = wanted[part];
      if (of !== undefined) await provide(of, ids[part], part, by, deps);
    }
    await bus.publish(runRequested, { tenant, id: ids.run }, { spec: wanted.spec, by });
  });
}

async function provide(of: DatasetOfResource, id: string, part: "dataset" | "validation", by: string, deps: RequestRunDeps): Promise<void> {
  const { bus, objects, kube, tenant, namespace } = deps;
  const at = { tenant, id };
  if (of.source !== undefined) {
    if ((await bus.last(datasetImportRequested, at)) === undefined)
      await bus.publish(datasetImportRequested, at, { source: of.source, mapping: of.mapping, by });
    return;
  }
  // The data that was read first is kept; later changes of the ConfigMap have no effect.
  if (of.configMap === undefined || (await bus.last(datasetReceived, at)) !== undefined) return;
  const { name, key } = of.configMap;
  const found = await kube.get(configMaps, { namespace, name });
  const refuse = (code: string, message: string) => new PermanentError(code, message, { param: `${part}.configMap` });
  if (found === undefined) throw refuse("CONFIGMAP_UNKNOWN", `there is no ConfigMap "${name}" in namespace ${namespace}; it is waited for`);
  const text = found.data?.[key];
  const packed = found.binaryData?.[key];
  if (text === undefined && packed === undefined) {
    const keys = [...Object.keys(found.data ?? {}), ...Object.keys(found.binaryData ?? {})].join(", ") || "none";
    throw refuse("CONFIGMAP_KEY_UNKNOWN", `ConfigMap "${name}" has no key "${key}"; it has ${keys}. The key is waited for`);
  }
  const bytes = text === undefined ? Buffer.from(packed ?? "", "base64") : Buffer.from(text);
  if (bytes.byteLength === 0)
    throw refuse("CONFIGMAP_EMPTY", `key "${key}" of ConfigMap "${name}" is empty; put at least one training example there`);
  const blob = await objects.put(tenant, "raw", bytes);
  await bus.publish(datasetReceived, at, { blob, filename: key, mapping: of.mapping, by });
}

/** Of a run what says which dataset it uses. All of a tenant are read for that at once, and a spec may have 190 kilobytes. */
const runOfDataset = z.object({ spec: z.object({ dataset: z.string().nullish() }) });

/** The trace that the run continues: the resource's; otherwise its dataset's, if no run continues that yet; otherwise a new one. */
async function traceOf(
  object: FineTune,
  { dataset }: Wanted,
  ids: Ids,
  { bus, tenant }: RequestRunDeps,
): Promise<{ parent: string | null; links?: string[] }> {
  const given = object.metadata?.annotations?.[traceparentAnnotation];
  const incoming = isTraceparent(given) ? given : undefined;
  const at = { tenant, id: dataset?.id ?? ids.dataset };
  const heard: (Received | undefined)[] =
    dataset === undefined ? [] : await Promise.all([bus.last(datasetImportRequested, at), bus.last(datasetReceived, at)]);
  const ofDataset = heard.find((event) => event?.trace)?.trace ?? undefined;
  if (ofDataset === undefined) return { parent: incoming ?? null };
  if (incoming !== undefined) return { parent: incoming, links: traceIdOf(incoming) === traceIdOf(ofDataset) ? [] : [ofDataset] };
  const runs = await (await bus.bucket({ ...buckets.runs, value: runOfDataset })).entries(everyKeyOf(tenant), { skipUnreadable: true });
  return runs.some(({ value }) => value.spec.dataset === at.id) ? { parent: null, links: [ofDataset] } : { parent: ofDataset };
}
