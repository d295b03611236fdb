/** A checkpoint that somebody asks for by its name becomes a version of its adapter: gated, loaded and proven like any other, and never promoted by itself. */
import type { KvBucket, Received } from "@loraline/bus";
import {
  type adapterCheckpointWanted,
  adapterKey,
  adapterManifest,
  type Problem,
  type PublishedCheckpoint,
  runKey,
  type RunState,
  runTokenized,
} from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";
import { PermanentError, problemOf } from "@loraline/runtime";
import { nameOf, publishAccepted, publishRefused } from "../aliases/adapter-events.ts";
import { wantedForMs } from "./decide-keep.ts";
import { addVersion, versionOfCheckpoint } from "./decide-versions.ts";
import { gateVersion } from "./gate-version.ts";
import type { GateDeps } from "./on-run-trained.ts";

/**
 * Nothing happens when there is no such checkpoint any more, or the adapter would be one more than its tenant may have: the gateway, which saw
 * room a moment ago, says so to whoever asks again.
 */
export async function onCheckpointWanted(
  { at, data: { runId, step }, trace }: Received<typeof adapterCheckpointWanted>,
  deps: GateDeps & {
    objects: Pick<Objects, "get" | "touch">;
    runs: KvBucket<RunState>;
    /** The version stays loaded for so long, in ms. Default: 15 minutes. */
    wantedForMs?: number | undefined;
  },
): Promise<void> {
  const { bus, log, telemetry, adapters, placer, runs, objects } = deps;
  const { tenant } = at;
  const run = (await runs.get(runKey({ tenant, id: runId })))?.value;
  const found = run?.checkpoints.find((known) => known.step === step);
  if (run === undefined || run.spec.adapter !== at.id || !found?.published) return;
  const { spec } = run;
  const { published } = found;
  const key = adapterKey({ tenant, adapter: spec.adapter });
  const known = (await adapters.get(key))?.value;
  if (versionOfCheckpoint(known, { runId, step }) === undefined) {
    const judged = { tenant, spec: { ...spec, gate: "none" as const }, ...published, evaluation: null, known };
    const gated = await touch(objects, tenant, published)
      .then(() => gateVersion(judged, deps))
      .catch(unlessGone);
    // A version that is refused would be kept, and its adapter with it: one more than the tenant may have.
    if (known === undefined && gated.problem?.code === "QUOTA_ADAPTERS") {
      log.info({ runId, step, adapter: nameOf(at), ...gated.problem }, "a checkpoint that is asked for becomes no version");
      return;
    }
    const system = (await bus.last(runTokenized, { tenant, id: runId }))?.data.system ?? null;
    const now = Date.now();
    await adapters.change(key, (current) => {
      const engine = gated.engine ?? current?.engine;
      if (engine === undefined) return undefined;
      return addVersion(current, {
        tenant,
        adapter: spec.adapter,
        engine,
        base: spec.base,
        digest: published.adapter.digest,
        manifest: published.adapter,
        evidence: published.evidence,
        runId,
        checkpoint: { runId, step },
        wanted: { at: new Date(now).toISOString(), until: new Date(now + (deps.wantedForMs ?? wantedForMs)).toISOString() },
        rank: published.rank,
        placement: spec.placement,
        replicas: placer.initial(engine, current, spec.placement),
        system,
        promote: "manual",
        evaluation: null,
        lastStepAt: found.at,
        createdAt: new Date(now).toISOString(),
        trace: telemetry.traceparent() ?? trace,
        refused: gated.problem,
      });
    });
  }
  const state = (await adapters.get(key))?.value;
  const version = versionOfCheckpoint(state, { runId, step });
  if (state === undefined || version === undefined) {
    log.warn({ runId, step, adapter: nameOf(at) }, "no engine serves the base of a checkpoint that is asked for");
    return;
  }
  if (version.status === "refused" && version.reason !== null) await publishRefused(state, version, version.reason, deps);
  else await publishAccepted(at, spec.base, version, deps);
}

/** Makes the checkpoint's bytes young: its run may have ended a week ago, and the collector be about to remove them. */
async function touch(objects: Pick<Objects, "get" | "touch">, tenant: string, { adapter, evidence }: PublishedCheckpoint): Promise<void> {
  const { files } = await getJson(objects, tenant, adapter, adapterManifest);
  await Promise.all([adapter, evidence, ...files.map(({ blob }) => blob)].map((ref) => objects.touch(tenant, ref)));
}

/** What is gone will not come back: the version says so for good. */
const unlessGone = (error: unknown): { engine: undefined; problem: Problem } => {
  if (error instanceof PermanentError && /^OBJECT_(?:MISSING|CORRUPT)$/.test(error.code))
    return { engine: undefined, problem: problemOf(error) };
  throw error;
};
