/** What the gate says to an adapter in the object store, and which engine is to serve it. */
import { judgeNewAdapter, type KvBucket, type TenantQuotas } from "@loraline/bus";
import { adapterFiles, type AdapterParts, enginesServing, readAdapterHead } from "@loraline/models";
import {
  type AdapterManifest,
  adapterManifest,
  type AdapterState,
  type BlobRef,
  type EngineRecord,
  type Evaluation,
  evidence as evidenceShape,
  type Problem,
  type RunSpec,
} from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";
import { PermanentError, problemOf, type Telemetry } from "@loraline/runtime";
import { decideGate } from "./decide-gate.ts";

export interface GateVersionDeps {
  telemetry: Pick<Telemetry, "span">;
  objects: Pick<Objects, "get">;
  adapters: KvBucket<AdapterState>;
  engines: Pick<KvBucket<EngineRecord>, "entries">;
  quotas: TenantQuotas;
}

/** @throws PermanentError OBJECT_MISSING, OBJECT_CORRUPT */
export async function gateVersion(
  version: {
    tenant: string;
    spec: RunSpec;
    /** Its manifest. */
    adapter: BlobRef;
    evidence: BlobRef;
    evaluation: Evaluation | null;
    /** The adapter's state; undefined: this is its first version. */
    known: AdapterState | undefined;
  },
  { telemetry, objects, adapters, engines, quotas }: GateVersionDeps,
): Promise<{ engine: string; problem?: never } | { engine: string | undefined; problem: Problem }> {
  const { tenant, spec, known, evaluation } = version;
  const [manifest, evidence] = await Promise.all([
    getJson(objects, tenant, version.adapter, adapterManifest),
    getJson(objects, tenant, version.evidence, evidenceShape),
  ]);
  const parts = await partsOf(objects, tenant, manifest);
  const open = (await engines.entries(">", { skipUnreadable: true }))
    .map(({ value }) => value)
    .filter(({ tenants }) => tenants?.includes(tenant) ?? true);
  const candidates = enginesServing(open, spec.base);
  const engine =
    open.find((each) => each.engine === known?.engine && [each.base.name, each.derivedFrom?.name].includes(spec.base)) ??
    candidates.find(({ problem: broken }) => !broken) ??
    candidates[0];
  const { digest } = version.adapter;
  const attributes = { "loraline.adapter": spec.adapter, "loraline.digest": digest };
  const problem = await telemetry.span("gate", { attributes }, async (span) => {
    const found = decideGate({ spec, digest, manifest, parts, evidence, evaluation, engine, adapter: known });
    span.setAttribute("loraline.gate", found?.code ?? "accepted");
    return found;
  });
  // Runs for many new adapters may have been requested before the first of them was made.
  const most = quotas.of(tenant).adapters;
  const overQuota = known === undefined ? await judgeNewAdapter(adapters, { tenant, adapter: spec.adapter, most }) : undefined;
  const why = problem ?? overQuota;
  if (why !== undefined) return { engine: engine?.engine, problem: why };
  if (engine !== undefined) return { engine: engine.engine };
  return { engine: undefined, problem: { code: "BASE_UNKNOWN", message: `no engine serves base "${spec.base}".` } };
}

/** What the headers of its files say, or why they cannot be read. */
async function partsOf(objects: Pick<Objects, "get">, tenant: string, { files }: AdapterManifest): Promise<AdapterParts | Problem> {
  const [config, weights] = [adapterFiles.config, adapterFiles.weights].map((name) => files.find(({ path }) => path === name)?.blob);
  if (config === undefined || weights === undefined) {
    const missing = config === undefined ? adapterFiles.config : adapterFiles.weights;
    return { code: "ADAPTER_FILES_MISSING", param: missing, message: `the adapter has no ${missing}.` };
  }
  try {
    return await readAdapterHead(objects, tenant, { config, weights });
  } catch (error) {
    if (error instanceof PermanentError && error.code.startsWith("ADAPTER_")) return problemOf(error);
    throw error;
  }
}
