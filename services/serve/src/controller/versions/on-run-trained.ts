/** A trained version: through the gate into KV `adapters`, or refused. */
import { judgeNewAdapter, type KvBucket, type Received, type TenantQuotas } from "@loraline/bus";
import { adapterFiles, type AdapterParts, enginesServing, readAdapterHead } from "@loraline/models";
import {
  adapterKey,
  type AdapterManifest,
  adapterManifest,
  adapterRefused,
  type AdapterState,
  type EngineRecord,
  evidence as evidenceShape,
  type Problem,
  runCancelled,
  runCancelRequested,
  runFailed,
  runRequested,
  runTokenized,
  type runTrained,
} from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";
import { PermanentError, problemOf } from "@loraline/runtime";
import { type AdapterEventDeps, nameOf, publishAccepted, publishLinesAfter } from "../aliases/adapter-events.ts";
import { lastLine } from "../aliases/history-lines.ts";
import { decideGate, gateDoubt } from "./decide-gate.ts";
import { addVersion, versionOfRun } from "./decide-versions.ts";
import type { Placer } from "../placement/place-versions.ts";
import { onCancelRequested } from "./on-cancel-requested.ts";

interface GateDeps extends AdapterEventDeps {
  objects: Pick<Objects, "get">;
  adapters: KvBucket<AdapterState>;
  engines: Pick<KvBucket<EngineRecord>, "entries">;
  placer: Pick<Placer, "initial">;
  quotas: TenantQuotas;
}

/** Gates what a run trained; a version that passes is desired from then on. */
export async function onRunTrained(received: Received<typeof runTrained>, deps: GateDeps): Promise<void> {
  const { bus, objects, log, telemetry, adapters, engines, placer, quotas } = deps;
  const { at, data } = received;
  const { tenant, id: runId } = at;
  const requested = await bus.first(runRequested, at);
  if (requested === undefined)
    throw new PermanentError("RUN_UNKNOWN", `run ${runId} of tenant "${tenant}" was trained, but nobody requested it.`);
  const { spec } = requested.data;
  // A failed run has failed for good.
  const over = (await bus.last(runCancelled, at)) ?? (await bus.last(runFailed, at));
  if (over !== undefined) {
    log.info({ runId, because: over.type }, "run is over; its adapter is not served");
    return;
  }

  const key = adapterKey({ tenant, adapter: spec.adapter });
  const name = { tenant, id: spec.adapter };
  const known = (await adapters.get(key))?.value;
  let version = versionOfRun(known, runId);
  // Called off while its last attempt was ending.
  const calledOff = version === undefined ? await bus.last(runCancelRequested, at) : undefined;
  if (calledOff !== undefined) {
    log.info({ runId }, "run was cancelled before its adapter was taken up; it is not served");
    await bus.publish(runCancelled, at, { by: calledOff.data.by });
    return;
  }
  if (version === undefined) {
    const [manifest, evidence] = await Promise.all([
      getJson(objects, tenant, data.adapter, adapterManifest),
      getJson(objects, tenant, data.evidence, evidenceShape),
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
    const problem = await telemetry.span(
      "gate",
      { attributes: { "loraline.adapter": spec.adapter, "loraline.digest": data.adapter.digest } },
      async (span) => {
        const found = decideGate({
          spec,
          digest: data.adapter.digest,
          manifest,
          parts,
          evidence,
          evaluation: data.evaluation,
          engine,
          adapter: known,
        });
        span.setAttribute("loraline.gate", found?.code ?? "accepted");
        return found;
      },
    );
    // Runs for many new adapters may have been requested before the first of them was made.
    const most = quotas.of(tenant).adapters;
    const overQuota = known === undefined ? await judgeNewAdapter(adapters, { tenant, adapter: spec.adapter, most }) : undefined;
    if (problem !== undefined || overQuota !== undefined || engine === undefined) {
      const why = problem ?? overQuota ?? { code: "BASE_UNKNOWN", message: `no engine serves base "${spec.base}".` };
      log.warn({ runId, adapter: nameOf(name), ...why }, "version refused by the gate");
      await bus.publish(adapterRefused, name, { ...why, version: null, digest: data.adapter.digest, runId }, { key: runId });
      await bus.publish(runFailed, at, why);
      return;
    }
    const system = (await bus.last(runTokenized, at))?.data.system ?? null;
    const note = gateDoubt({ spec, evaluation: data.evaluation, adapter: known });
    if (note !== undefined) log.warn({ runId, adapter: nameOf(name), note }, "the gate could not judge everything it was asked to");
    let linesBefore = 0;
    const state = await adapters.change(key, (current) => {
      linesBefore = current === undefined ? 0 : lastLine(current);
      return addVersion(current, {
        tenant,
        adapter: spec.adapter,
        engine: engine.engine,
        base: spec.base,
        digest: data.adapter.digest,
        manifest: data.adapter,
        evidence: data.evidence,
        runId,
        rank: data.rank,
        placement: spec.placement,
        keep: spec.keep,
        replicas: placer.initial(engine.engine, current, spec.placement),
        note,
        system,
        promote: note !== undefined && (spec.gate === "better-than-promoted" || spec.gate_accuracy === true) ? "manual" : spec.promote,
        canary: spec.canary,
        evaluation: data.evaluation,
        lastStepAt: data.lastStepAt,
        createdAt: new Date().toISOString(),
        trace: telemetry.traceparent() ?? received.trace,
      });
    });
    // A run may set another `keep`.
    if (state !== undefined) await publishLinesAfter(state, linesBefore, deps);
    version = versionOfRun(state, runId);
  }
  if (version === undefined) throw new Error(`run ${runId} has no version in KV adapters/${key} after it was added`);
  await publishAccepted(name, spec.base, version, deps);
  // Whoever called it off a moment ago found no version to withdraw.
  const calledOffSince = await bus.last(runCancelRequested, at);
  if (calledOffSince !== undefined) await onCancelRequested(calledOffSince, deps, adapters);
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
