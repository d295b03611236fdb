/** What a run has written and still evaluates: replicas load and prove it ahead of its gate, where there is room. */
import type { Received } from "@loraline/bus";
import {
  adapterKey,
  type runAdapterWritten,
  runAttemptEnded,
  runCancelled,
  runCancelRequested,
  runFailed,
  runRequested,
  runTrained,
} from "@loraline/contracts";
import type { IncomingVersions } from "../placement/incoming-versions.ts";
import type { Placer } from "../placement/place-versions.ts";
import { versionOfRun } from "./decide-versions.ts";
import { gateVersion } from "./gate-version.ts";
import type { GateDeps } from "./on-run-trained.ts";

/** Beside incoming versions there stays room for one that is wanted. */
const spare = 1;

export async function onAdapterWritten(
  received: Received<typeof runAdapterWritten>,
  deps: GateDeps & { placer: Pick<Placer, "initial" | "hasRoom">; incoming: IncomingVersions },
): Promise<void> {
  const { bus, adapters, placer, incoming, telemetry } = deps;
  const { at, data } = received;
  const { tenant, id: runId } = at;
  if (await isOver(received, deps)) return;
  const requested = await bus.first(runRequested, at);
  if (requested === undefined) return;
  const { spec } = requested.data;
  const known = (await adapters.get(adapterKey({ tenant, adapter: spec.adapter })))?.value;
  if (versionOfRun(known, runId) !== undefined) return;
  const { adapter: manifest, evidence } = data;
  // All that the files themselves say is judged now; what the evaluation says is judged with `run.trained`, as is all the rest again.
  const { engine, problem } = await gateVersion(
    { tenant, spec: { ...spec, gate: "none" }, adapter: manifest, evidence, evaluation: null, known },
    deps,
  );
  if (problem !== undefined) return;
  if (placer.initial(engine, known, spec.placement) !== null || !placer.hasRoom(engine, incoming.countOn(engine) + 1 + spare)) return;
  const trace = telemetry.traceparent() ?? received.trace;
  incoming.add({ tenant, adapter: spec.adapter, engine, runId, digest: manifest.digest, manifest, evidence, trace });
  // It may have ended since it was asked, and its end may have been heard of before this.
  if (await isOver(received, deps)) incoming.drop(runId);
}

async function isOver({ at, data }: Received<typeof runAdapterWritten>, { bus }: Pick<GateDeps, "bus">): Promise<boolean> {
  const [lost, ...ends] = await Promise.all([
    bus.last(runAttemptEnded, at),
    ...[runTrained, runFailed, runCancelled, runCancelRequested].map((event) => bus.last(event, at)),
  ]);
  return (lost !== undefined && lost.data.attempt >= data.attempt) || ends.some((end) => end !== undefined);
}
