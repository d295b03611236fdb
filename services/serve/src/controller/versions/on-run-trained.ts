/** A trained version: through the gate into KV `adapters`, or refused. */
import type { Received } from "@loraline/bus";
import {
  adapterKey,
  adapterRefused,
  runCancelled,
  runCancelRequested,
  runFailed,
  runRequested,
  runTokenized,
  type runTrained,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { type AdapterEventDeps, nameOf, publishAccepted, publishLinesAfter } from "../aliases/adapter-events.ts";
import { lastLine } from "../aliases/history-lines.ts";
import { gateDoubt } from "./decide-gate.ts";
import { addVersion, versionOfRun } from "./decide-versions.ts";
import { gateVersion, type GateVersionDeps } from "./gate-version.ts";
import type { Placer } from "../placement/place-versions.ts";
import { onCancelRequested } from "./on-cancel-requested.ts";

export interface GateDeps extends AdapterEventDeps, GateVersionDeps {
  telemetry: AdapterEventDeps["telemetry"];
  placer: Pick<Placer, "initial">;
}

/** Gates what a run trained; a version that passes is desired from then on. */
export async function onRunTrained(received: Received<typeof runTrained>, deps: GateDeps): Promise<void> {
  const { bus, log, telemetry, adapters, placer } = deps;
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
    const gated = await gateVersion(
      { tenant, spec, adapter: data.adapter, evidence: data.evidence, evaluation: data.evaluation, known },
      deps,
    );
    if (gated.problem !== undefined) {
      const why = gated.problem;
      log.warn({ runId, adapter: nameOf(name), ...why }, "version refused by the gate");
      await bus.publish(adapterRefused, name, { ...why, version: null, digest: data.adapter.digest, runId }, { key: runId });
      await bus.publish(runFailed, at, why);
      return;
    }
    const { engine } = gated;
    const system = (await bus.last(runTokenized, at))?.data.system ?? null;
    const note = gateDoubt({ spec, evaluation: data.evaluation, adapter: known });
    if (note !== undefined) log.warn({ runId, adapter: nameOf(name), note }, "the gate could not judge everything it was asked to");
    let linesBefore = 0;
    const state = await adapters.change(key, (current) => {
      linesBefore = current === undefined ? 0 : lastLine(current);
      return addVersion(current, {
        tenant,
        adapter: spec.adapter,
        engine,
        base: spec.base,
        digest: data.adapter.digest,
        manifest: data.adapter,
        evidence: data.evidence,
        runId,
        rank: data.rank,
        placement: spec.placement,
        keep: spec.keep,
        replicas: placer.initial(engine, current, spec.placement),
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
