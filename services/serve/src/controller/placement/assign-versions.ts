/** Keeps KV `assignments` as it follows from KV `adapters`, so that an agent reads only what its own replica should hold. */
import { hash } from "node:crypto";
import type { KvBucket } from "@loraline/bus";
import { type AdapterState, assignment, type Assignment, assignmentsComplete, parseAssignmentKey } from "@loraline/contracts";
import { createKeyedQueue, type Log } from "@loraline/runtime";
import type { WatchedTable } from "../watched-table.ts";
import { assignmentsOf } from "./decide-assignments.ts";
import type { IncomingVersions } from "./incoming-versions.ts";

/** Adapters whose entries are written at once. */
const concurrency = 32;

interface Assigner extends AsyncDisposable {
  /** To be called with every change of an adapter (key of KV `adapters`). */
  onAdapter(key: string): void;
  /** To be called when every adapter was told: those of the given engines are complete as soon as what was told is written. */
  complete(engines: Iterable<string>): void;
}

/** Reads what an earlier controller wrote, so that only what differs is written. */
export async function createAssigner({
  assignments,
  states,
  incoming,
  log,
}: {
  assignments: Pick<KvBucket<Assignment>, "entries" | "put" | "delete">;
  /** Every adapter as it is known now, by key. */
  states: Pick<WatchedTable<AdapterState>, "get">;
  incoming: Pick<IncomingVersions, "of">;
  log: Log;
}): Promise<Assigner> {
  /** By the adapter's key: keys of its entries, each with what stands there. */
  const written = new Map<string, Map<string, string>>();
  const note = (key: string, digest: string): void => {
    const parsed = parseAssignmentKey(key);
    if (parsed === undefined) return;
    const ofAdapter = written.get(parsed.adapterKey) ?? new Map<string, string>();
    written.set(parsed.adapterKey, ofAdapter.set(key, digest));
  };
  // An entry that cannot be read equals none that follows from an adapter: it is written again, or deleted.
  const skipUnreadable = (key: string): void => note(key, "");
  for (const { key, value } of await assignments.entries(">", { skipUnreadable })) note(key, digestOf(value));
  /** Adapters that have to be written before the engines are complete. */
  const open = new Set<string>(written.keys());
  let isComplete = false;
  /** Engines that are to be marked as complete. */
  const unmarked = new Set<string>();
  const marking = "";

  const queue = createKeyedQueue({
    concurrency,
    log,
    async work(adapterKey) {
      if (adapterKey === marking) {
        for (const engine of unmarked) {
          await assignments.put(assignmentsComplete(engine), { versions: [] });
          unmarked.delete(engine);
        }
        return;
      }
      const state = states.get(adapterKey);
      const next = assignmentsOf(state, incoming.of(adapterKey));
      const ofAdapter = written.get(adapterKey) ?? new Map<string, string>();
      written.set(adapterKey, ofAdapter);
      await Promise.all(
        [...next].map(async ([key, value]) => {
          const digest = digestOf(value);
          if (ofAdapter.get(key) === digest) return;
          await assignments.put(key, value);
          ofAdapter.set(key, digest);
        }),
      );
      // Afterwards, or a replica would let go of a version that stays: it is assigned to it alone now, and was to every one.
      for (const key of ofAdapter.keys()) {
        if (next.has(key)) continue;
        await assignments.delete(key);
        ofAdapter.delete(key);
      }
      if (ofAdapter.size === 0) written.delete(adapterKey);
      open.delete(adapterKey);
      if (isComplete && open.size === 0 && unmarked.size > 0) queue.add(marking);
    },
  });

  return {
    onAdapter(key) {
      if (!isComplete) open.add(key);
      queue.add(key);
    },
    complete(engines) {
      isComplete = true;
      for (const engine of engines) unmarked.add(engine);
      // Also adapters that an earlier controller assigned and that are gone.
      for (const key of open) queue.add(key);
      if (open.size === 0) queue.add(marking);
    },
    [Symbol.asyncDispose]: () => queue[Symbol.asyncDispose](),
  };
}

/** Equal for equal entries: the schema puts their fields into one order. */
const digestOf = (value: Assignment): string => hash("sha256", JSON.stringify(assignment.parse(value)), "base64").slice(0, 16);
