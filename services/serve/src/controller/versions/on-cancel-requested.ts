/** A run that is called off after its training: its version is not served, if it is not served yet. */
import type { KvBucket, Received } from "@loraline/bus";
import { adapterKey, type AdapterState, type runCancelRequested, runRequested } from "@loraline/contracts";
import { type AdapterEventDeps, cancelledCode, nameOf, publishRefused } from "../aliases/adapter-events.ts";
import { applyRefused, versionOfRun } from "./decide-versions.ts";

/**
 * Whoever writes the entry first counts: a version that is served already stays so. A run whose training is not over, or not taken up
 * yet, is left to those who see that it was called off: train, and `onRunTrained`.
 */
export async function onCancelRequested(
  { at, data }: Received<typeof runCancelRequested>,
  deps: AdapterEventDeps,
  adapters: KvBucket<AdapterState>,
): Promise<void> {
  const requested = await deps.bus.first(runRequested, at);
  if (requested === undefined) return;
  const name = { tenant: at.tenant, id: requested.data.spec.adapter };
  const reason = { code: cancelledCode, message: `the run was cancelled${data.by ? ` by ${data.by}` : ""}` };
  const state = await adapters.change(adapterKey({ tenant: name.tenant, adapter: name.id }), (current) => {
    const version = versionOfRun(current, at.id);
    if (current === undefined || version === undefined || version.status !== "desired" || version.servedAt !== null) return undefined;
    return applyRefused(current, { kind: "refused", version: version.version, problem: reason });
  });
  const version = versionOfRun(state, at.id);
  if (state === undefined || version?.reason?.code !== cancelledCode) return;
  deps.log.info({ runId: at.id, adapter: nameOf(name), version: version.version }, "version is not served: its run was cancelled");
  await publishRefused(state, version, version.reason, deps);
}
