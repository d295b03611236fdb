/** Carries out commands about which versions stay loaded: a version asked for by name, a new `keep`, a deletion. */
import type { KvBucket, Received } from "@loraline/bus";
import {
  type adapterDeleteRequested,
  type AdapterState,
  type adapterKeepRequested,
  type adapterVersionDeleteRequested,
  type adapterVersionWanted,
  deletionKey,
  type DeletionState,
  type EventAddress,
  everyKeyOf,
  runState,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { z } from "zod";
import { type AdapterEventDeps, keyOf, nameOf, publishLine, publishLinesAfter } from "../aliases/adapter-events.ts";
import { lastLine } from "../aliases/history-lines.ts";
import { applyKeep, decideDelete, type DeleteDecision, wantVersion } from "./decide-keep.ts";

/** Changes the entry by one compare-and-set, then publishes an event for each line that this added to the history. */
async function changeAndPublish(
  at: EventAddress,
  change: (current: AdapterState | undefined) => AdapterState | undefined,
  deps: AdapterEventDeps,
  adapters: KvBucket<AdapterState>,
): Promise<AdapterState | undefined> {
  let known = 0;
  const state = await adapters.change(keyOf(at), (current) => {
    known = current === undefined ? 0 : lastLine(current);
    const next = change(current);
    return next === current ? undefined : next;
  });
  if (state !== undefined) await publishLinesAfter(state, known, deps);
  return state;
}

/** Notes that a version was asked for by its name. Nothing happens if there is no such version: it may have been deleted meanwhile. */
export async function onVersionWanted(
  { at, data: { version, by } }: Received<typeof adapterVersionWanted>,
  deps: AdapterEventDeps & {
    /** How long the version stays loaded, in ms. Default: 15 minutes. */
    wantedForMs?: number | undefined;
  },
  adapters: KvBucket<AdapterState>,
): Promise<void> {
  const cause = { by: by ?? null, reason: "asked for by name", at: new Date().toISOString() };
  await changeAndPublish(at, (current) => current && wantVersion(current, version, cause, deps.wantedForMs), deps, adapters);
}

export async function onKeepRequested(
  { at, seq, data: { keep, by } }: Received<typeof adapterKeepRequested>,
  deps: AdapterEventDeps,
  adapters: KvBucket<AdapterState>,
): Promise<void> {
  const now = new Date().toISOString();
  const change = (current: AdapterState | undefined): AdapterState | undefined => {
    if (current === undefined || (current.keepSeq ?? 0) > seq) return current;
    return applyKeep({ ...current, keep, keepSeq: seq }, now);
  };
  const state = await changeAndPublish(at, change, deps, adapters);
  if (state === undefined) throw new PermanentError("ADAPTER_UNKNOWN", `there is no adapter "${nameOf(at)}".`);
  deps.log.info({ adapter: nameOf(at), keep, by }, "keep set");
}

/**
 * Of a run what says whether it trains an adapter. All of a tenant are read for that at once, and a spec may have 190 kilobytes. What is left out
 * cannot hide a run either, such as a spec that only an older version took.
 */
export const trainingRun = runState
  .pick({ runId: true, phase: true, finishedAt: true })
  .extend({ spec: z.object({ adapter: z.string() }) });

/** Asks the collector to remove the adapter, as the gateway does for a request by HTTP. Nothing happens if there is none any more. */
export async function onAdapterDeleteRequested(
  { at, data: { by } }: Received<typeof adapterDeleteRequested>,
  { log }: Pick<AdapterEventDeps, "log">,
  adapters: KvBucket<AdapterState>,
  runs: KvBucket<z.output<typeof trainingRun>>,
  deletions: KvBucket<DeletionState>,
): Promise<void> {
  if ((await adapters.get(keyOf(at))) === undefined) return;
  const open = (await runs.entries(everyKeyOf(at.tenant), { skipUnreadable: true })).find(
    ({ value: { spec, finishedAt } }) => spec.adapter === at.id && finishedAt === null,
  )?.value;
  if (open !== undefined) {
    throw new PermanentError(
      "ADAPTER_IN_TRAINING",
      `run ${open.runId} trains ${nameOf(at)} and has not ended (${open.phase}). Cancel it, or wait for it, then delete the adapter.`,
      { param: "adapter" },
    );
  }
  const what = { tenant: at.tenant, what: "adapter", id: at.id } as const;
  const fresh = { ...what, by: by ?? null, at: new Date().toISOString(), waiting: null, doneAt: null };
  await deletions.change(deletionKey(what), (current) => (current === undefined || current.doneAt !== null ? fresh : undefined));
  log.info({ adapter: nameOf(at), by }, "adapter is to be deleted");
}

/** Marks the version as deleted, and asks the collector to remove its bytes. */
export async function onDeleteRequested(
  { at, seq, data: { version, by } }: Received<typeof adapterVersionDeleteRequested>,
  deps: AdapterEventDeps,
  adapters: KvBucket<AdapterState>,
  deletions: KvBucket<DeletionState>,
): Promise<void> {
  let decision: DeleteDecision = { kind: "nothing" };
  const now = new Date().toISOString();
  const command = { name: nameOf(at), version, by: by ?? null, at: now, command: seq };
  const change = (current: AdapterState | undefined): AdapterState | undefined => {
    decision = decideDelete(current, command);
    return decision.kind === "delete" ? decision.state : current;
  };
  const state = await changeAndPublish(at, change, deps, adapters);
  // Assigned in the callback, which the compiler does not follow.
  const decided = decision as DeleteDecision;
  if (decided.kind === "reject") throw new PermanentError(decided.problem.code, decided.problem.message, { param: decided.problem.param });
  // A command that is delivered again changes nothing, but the event of its line may be missing.
  const own = state?.history.findIndex((line) => line.command === seq) ?? -1;
  if (state !== undefined && decided.kind === "nothing" && own !== -1) await publishLine(state, own, deps);
  const what = { tenant: at.tenant, what: "version", id: `${at.id}/${version}` } as const;
  await deletions.change(deletionKey(what), (current) => current ?? { ...what, by: command.by, at: now, waiting: null, doneAt: null });
  deps.log.info({ adapter: nameOf(at), version, by }, decided.kind === "delete" ? "version deleted" : "version was deleted already");
}
