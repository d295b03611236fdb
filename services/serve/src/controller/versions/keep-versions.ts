/**
 * Does what is due for an adapter's versions later: retires those that nobody asks for any more, and moves the alias to a version that was
 * loaded for it. The bytes of deleted versions are removed by the collector (@loraline/storage).
 */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState, ReplicaState } from "@loraline/contracts";
import { addressOf, type AdapterEventDeps, nameOf, publishLinesAfter } from "../aliases/adapter-events.ts";
import { decideAwaiting } from "../aliases/decide-awaiting.ts";
import { lastLine } from "../aliases/history-lines.ts";
import { applyKeep, nextLapse } from "./decide-keep.ts";
import type { WatchedTable } from "../watched-table.ts";

export interface Keeper {
  /** To be called with every change of an adapter. */
  onAdapter(key: string, state: AdapterState | undefined): void;
  /** Whether `keep` has something to do for an adapter. */
  isDue(key: string): boolean;
  /** Retires versions and moves the alias, where that is due. May be called at any time, also again after a crash in the middle. */
  keep(key: string): Promise<void>;
  /** `follower` is called with the key of an adapter when there is something to do for it. */
  onDue(follower: (key: string) => void): void;
}

interface KeeperDeps extends AdapterEventDeps {
  adapters: KvBucket<AdapterState>;
  /** All adapters as they are known now, by key. */
  states: Pick<WatchedTable<AdapterState>, "get">;
  replicas: (of: AdapterState) => Iterable<ReplicaState>;
  /** How often adapters are checked when nothing was reported, in ms; at most 500. */
  resyncMs: number;
  signal: AbortSignal;
}

export function createKeeper(deps: KeeperDeps): Keeper {
  const { adapters, states, replicas, log, resyncMs, signal } = deps;
  const followers: ((key: string) => void)[] = [];
  const due = (key: string): void => {
    for (const follower of followers) follower(key);
  };
  /** Adapters that wait for a time or for a replica. */
  const open = new Set<string>();

  const decide = (state: AdapterState): AdapterState => {
    const now = Date.now();
    const moved = decideAwaiting(state, { name: nameOf(addressOf(state)), replicas: replicas(state), now }) ?? state;
    return (nextLapse(moved) ?? now) < now ? applyKeep(moved, new Date(now).toISOString()) : moved;
  };
  const isDue = (key: string): boolean => {
    const state = open.has(key) ? states.get(key) : undefined;
    return state !== undefined && decide(state) !== state;
  };
  // A timer is needed, because no change of the entry tells that time has passed or that a replica has proven a version.
  const timer = setInterval(
    () => {
      for (const key of open) if (isDue(key)) due(key);
    },
    Math.min(resyncMs, 500),
  );
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });

  return {
    isDue,
    onDue(follower) {
      followers.push(follower);
    },
    onAdapter(key, state) {
      if (state !== undefined && (state.awaiting || nextLapse(state) !== undefined)) {
        open.add(key);
        if (isDue(key)) due(key);
      } else open.delete(key);
    },
    async keep(key) {
      let known = 0;
      const state = await adapters.change(key, (current) => {
        known = current === undefined ? 0 : lastLine(current);
        const next = current && decide(current);
        return next === current ? undefined : next;
      });
      if (state === undefined) return;
      if (lastLine(state) > known)
        log.info({ adapter: key, alias: state.alias, lines: state.history.slice(known - lastLine(state)) }, "kept");
      await publishLinesAfter(state, known, deps);
    },
  };
}
