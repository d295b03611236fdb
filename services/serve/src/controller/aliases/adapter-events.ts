/** Events about an adapter. The id of each follows from the state that it tells, so publishing one twice stores it once. */
import type { Bus } from "@loraline/bus";
import {
  adapterAccepted,
  adapterCanaryEnded,
  adapterCanaryStarted,
  adapterCanaryStepped,
  adapterKey,
  adapterNotMoved,
  adapterPromoted,
  adapterRefused,
  adapterRolledBack,
  type AdapterState,
  type AdapterVersion,
  adapterVersionDeleted,
  adapterVersionRecalled,
  adapterVersionRetired,
  type EventAddress,
  type EventDef,
  type Problem,
  runCancelled,
  runFailed,
  runServed,
} from "@loraline/contracts";
import type { Log, Telemetry } from "@loraline/runtime";
import { isMove } from "./history-lines.ts";

export const keyOf = ({ tenant, id }: EventAddress): string => adapterKey({ tenant, adapter: id });
/** What it takes to publish these events. */
export interface AdapterEventDeps {
  bus: Bus;
  log: Log;
  telemetry: Pick<Telemetry, "span" | "traceparent" | "metrics">;
}

export const addressOf = ({ tenant, adapter }: AdapterState): EventAddress => ({ tenant, id: adapter });
export const nameOf = ({ tenant, id }: EventAddress): string => `${tenant}/${id}`;

export const publishAccepted = async (
  at: EventAddress,
  base: string,
  version: AdapterVersion,
  { bus }: Pick<AdapterEventDeps, "bus">,
): Promise<void> => {
  const { digest, runId, engineName, note, checkpoint } = version;
  const data = { version: version.version, digest, base, runId, step: checkpoint?.step, engineName, note };
  await bus.publish(adapterAccepted, at, data, { key: keyOfMade(version) });
};

/** Tells events about what a run published from those about its checkpoints. */
const keyOfMade = ({ runId, checkpoint }: AdapterVersion): string => (checkpoint ? `${runId}-step-${checkpoint.step}` : runId);

/** Index in the history of the move that came with the proof, not by a command: of the alias, or the beginning of a canary. */
export const movedWithProof = ({ history }: AdapterState, { version }: AdapterVersion): number | undefined => {
  const index = history.findIndex((line) => line.to === version && isMove(line) && (line.command ?? null) === null);
  return index === -1 ? undefined : index;
};

/** Reason of a version that is refused because its run was called off. */
export const cancelledCode = "CANCELLED";

const moveKey = ({ history }: AdapterState, index: number): string => `move-${history[index]?.n ?? index + 1}`;
const lineEvents = [
  adapterPromoted,
  adapterRolledBack,
  adapterCanaryStarted,
  adapterCanaryStepped,
  adapterCanaryEnded,
  adapterVersionRetired,
  adapterVersionRecalled,
  adapterVersionDeleted,
  adapterNotMoved,
];

/** Publishes one line of the history. */
export async function publishLine(state: AdapterState, index: number, { bus }: Pick<AdapterEventDeps, "bus">): Promise<void> {
  const move = state.history[index];
  if (move === undefined) return;
  const { kind, from, to, by, reason } = move;
  const at = addressOf(state);
  const options = { key: moveKey(state, index) };
  if (kind === "promoted") await bus.publish(adapterPromoted, at, { from, to, by, reason }, options);
  else if (kind === "rolledback") await bus.publish(adapterRolledBack, at, { from, to, by, reason }, options);
  else if (kind === "retired") await bus.publish(adapterVersionRetired, at, { version: to, because: move.because, reason }, options);
  else if (kind === "recalled") await bus.publish(adapterVersionRecalled, at, { version: to, by, reason }, options);
  else if (kind === "deleted") {
    const digest = state.versions.find(({ version }) => version === to)?.digest;
    if (digest !== undefined) await bus.publish(adapterVersionDeleted, at, { version: to, digest, by, reason }, options);
  } else if (kind === "not-moved")
    await bus.publish(adapterNotMoved, at, { version: to, code: move.code ?? "GIVEN_UP", by, reason }, options);
  else {
    // A canary has a promoted version that it is compared with.
    const canary = { version: to, from: from ?? to, by, reason };
    const share = move.share ?? 0;
    // When this is published late, after the canary is over, its settings are not known any more.
    const settings = state.canary?.startedAt === move.at ? state.canary.settings : undefined;
    if (kind === "canary-started") await bus.publish(adapterCanaryStarted, at, { ...canary, share, settings }, options);
    else if (kind === "canary-stepped") await bus.publish(adapterCanaryStepped, at, { ...canary, share }, options);
    else await bus.publish(adapterCanaryEnded, at, { ...canary, outcome: move.outcome ?? "rolledback", code: move.code }, options);
  }
}

/** Publishes what was added to the history after the line of this number. */
export async function publishLinesAfter(state: AdapterState, known: number, deps: AdapterEventDeps): Promise<void> {
  for (const [index, { n }] of state.history.entries()) if ((n ?? index + 1) > known) await publishLine(state, index, deps);
}

export async function publishServed(
  state: AdapterState,
  version: AdapterVersion,
  { bus, telemetry }: Pick<AdapterEventDeps, "bus" | "telemetry">,
): Promise<void> {
  const { runId, digest, servedAt, servedOn, servedOf, lastStepAt, trace, checkpoint } = version;
  if (checkpoint) return;
  const move = state.history[movedWithProof(state, version) ?? -1];
  await bus.publish(
    runServed,
    { tenant: state.tenant, id: runId },
    {
      adapter: state.adapter,
      version: version.version,
      digest,
      replicas: servedOn ?? 1,
      of: servedOf,
      promoted: move?.kind === "promoted",
      retired: state.history.flatMap(({ kind, because, to }) => (kind === "retired" && because === version.version ? [to] : [])),
      note: version.note,
      // The two times are of two machines: their clocks may differ.
      lastStepToProvenMs: Math.max(0, Date.parse(servedAt ?? "") - Date.parse(lastStepAt)),
    },
    { traceparent: telemetry.traceparent() ?? trace },
  );
}

export async function publishRefused(
  state: AdapterState,
  version: AdapterVersion,
  problem: Problem,
  { bus, telemetry }: Pick<AdapterEventDeps, "bus" | "telemetry">,
): Promise<void> {
  const { runId, digest, trace, checkpoint } = version;
  const { code, message, param } = problem;
  await bus.publish(
    adapterRefused,
    addressOf(state),
    { code, message, param, version: version.version, digest, runId, step: checkpoint?.step },
    { key: keyOfMade(version), traceparent: telemetry.traceparent() ?? trace },
  );
  if (checkpoint) return; // its run ends as it ends
  const at = { tenant: state.tenant, id: runId };
  const options = { traceparent: telemetry.traceparent() ?? trace };
  if (code === cancelledCode) await bus.publish(runCancelled, at, {}, options);
  else await bus.publish(runFailed, at, { code, message, param }, options);
}

const dayMs = 24 * 60 * 60_000;

/** Publishes events that are missing since a crash, or an absence of the bus, between a write and its events. The stream is asked what it has. */
export async function publishWhatWasLost(state: AdapterState, deps: AdapterEventDeps): Promise<void> {
  const { bus, log } = deps;
  if (state.history.length > 0) {
    const published = await bus.history(lineEvents, addressOf(state));
    const keys = new Set(published.map(({ id }) => id.slice(id.lastIndexOf("/") + 1)));
    for (const [index] of state.history.entries()) {
      if (keys.has(moveKey(state, index))) continue;
      log.warn({ adapter: nameOf(addressOf(state)), move: moveKey(state, index) }, "publishing a line whose event is missing");
      await publishLine(state, index, deps);
    }
  }
  for (const version of state.versions.filter(({ checkpoint }) => !checkpoint)) {
    const at = { tenant: state.tenant, id: version.runId };
    const end = version.reason?.code === cancelledCode ? runCancelled : runFailed;
    if (version.status === "refused" && (await bus.last<EventDef>(end, at)) === undefined) {
      await publishRefused(state, version, version.reason ?? { code: "REFUSED", message: "refused" }, deps);
    }
    // There may be a hundred retired versions: only recent ones are asked for, as the write that served one may also have retired it.
    const isOld = version.status !== "desired" && Date.now() - Date.parse(version.servedAt ?? "") > dayMs;
    if (version.servedAt !== null && !isOld && (await bus.last(runServed, at)) === undefined) {
      await publishServed(state, version, deps);
    }
  }
}
