/** Events about an adapter, each with an id that follows from the state it tells. */
import {
  adapterAccepted,
  adapterPromoted,
  adapterRefused,
  adapterRolledBack,
  type AdapterState,
  type AdapterVersion,
  type EventAddress,
  type Problem,
  runFailed,
  runServed,
} from "@loraline/contracts";
import type { ServeControllerDeps } from "./controller.ts";

export const keyOf = ({ tenant, id }: EventAddress): string => `${tenant}.${id}`;
export const addressOf = ({ tenant, adapter }: AdapterState): EventAddress => ({ tenant, id: adapter });
export const nameOf = ({ tenant, id }: EventAddress): string => `${tenant}/${id}`;

export const publishAccepted = async (
  at: EventAddress,
  base: string,
  version: AdapterVersion,
  { bus }: ServeControllerDeps,
): Promise<void> => {
  const { digest, runId, engineName } = version;
  await bus.publish(adapterAccepted, at, { version: version.version, digest, base, runId, engineName }, { key: runId });
};

/** Index in the history of the move that came with the proof. */
export const movedTo = ({ history }: AdapterState, { version }: AdapterVersion): number | undefined => {
  const index = history.findIndex(({ to, command }) => to === version && (command ?? null) === null);
  return index === -1 ? undefined : index;
};

const moveKey = (index: number): string => `move-${index + 1}`;

export async function publishMove(state: AdapterState, index: number, { bus }: ServeControllerDeps): Promise<void> {
  const move = state.history[index];
  if (move === undefined) return;
  const { kind, from, to, by, reason } = move;
  const event = kind === "promoted" ? adapterPromoted : adapterRolledBack;
  await bus.publish(event, addressOf(state), { from, to, by, reason }, { key: moveKey(index) });
}

export async function publishServed(
  state: AdapterState,
  version: AdapterVersion,
  replicas: number,
  { bus, telemetry }: ServeControllerDeps,
): Promise<void> {
  const { runId, digest, servedAt, lastStepAt, trace } = version;
  await bus.publish(
    runServed,
    { tenant: state.tenant, id: runId },
    {
      adapter: state.adapter,
      version: version.version,
      digest,
      replicas,
      promoted: movedTo(state, version) !== undefined,
      // Two machines' clocks.
      lastStepToProvenMs: Math.max(0, Date.parse(servedAt ?? "") - Date.parse(lastStepAt)),
    },
    { traceparent: telemetry.traceparent() ?? trace },
  );
}

export async function publishRefused(
  state: AdapterState,
  version: AdapterVersion,
  problem: Problem,
  { bus, telemetry }: ServeControllerDeps,
): Promise<void> {
  const { runId, digest, trace } = version;
  const { code, message, param } = problem;
  await bus.publish(
    adapterRefused,
    addressOf(state),
    { code, message, param, version: version.version, digest, runId },
    { key: runId, traceparent: telemetry.traceparent() ?? trace },
  );
  await bus.publish(
    runFailed,
    { tenant: state.tenant, id: runId },
    { code, message, param },
    { traceparent: telemetry.traceparent() ?? trace },
  );
}

/** After a crash, or an absence of the bus, between a write and its events. What the stream has is not said again. */
export async function publishWhatWasLost(state: AdapterState, deps: ServeControllerDeps): Promise<void> {
  const { bus, log } = deps;
  const lastMove = state.history.length - 1;
  if (lastMove >= 0) {
    const told = await Promise.all([bus.last(adapterPromoted, addressOf(state)), bus.last(adapterRolledBack, addressOf(state))]);
    if (!told.some((event) => event?.id.endsWith(`/${moveKey(lastMove)}`))) {
      log.warn({ adapter: nameOf(addressOf(state)), move: lastMove + 1 }, "publishing a move of the alias that was not told");
      await publishMove(state, lastMove, deps);
    }
  }
  for (const version of state.versions) {
    const at = { tenant: state.tenant, id: version.runId };
    if (version.status === "refused" && (await bus.last(runFailed, at)) === undefined) {
      await publishRefused(state, version, version.reason ?? { code: "REFUSED", message: "refused" }, deps);
    }
    if (version.servedAt !== null && version.status !== "retired" && (await bus.last(runServed, at)) === undefined) {
      await publishServed(state, version, 1, deps);
    }
  }
}
