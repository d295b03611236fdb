/**
 * Keeps loaded what should be: retires versions that nobody asks for any more, moves the alias to versions that were loaded for that, and
 * removes the bytes of deleted ones.
 */
import type { KvBucket } from "@loraline/bus";
import type { AdapterState, ReplicaState } from "@loraline/contracts";
import { addressOf, nameOf, publishLinesAfter } from "../aliases/adapter-events.ts";
import { decideAwaiting } from "../aliases/decide-awaiting.ts";
import { lastLine } from "../aliases/history-lines.ts";
import type { ServeServiceDeps } from "../service.ts";
import { applyKeep, nextLapse } from "./decide-keep.ts";
import { eraseVersion } from "./erase-version.ts";

export interface Keeper {
  /** To be told of every change of an adapter. */
  see(key: string, state: AdapterState | undefined): void;
  /** Whether `keep` or `erase` has something to do for an adapter. */
  isDue(key: string): boolean;
  /** Does what is due for one adapter. May be called at any time, and again after it died at any line. */
  keep(key: string): Promise<void>;
  /**
   * Removes the bytes of an adapter's deleted versions. May be called at any time, as `keep`.
   * @throws UnavailableError while the store is away.
   */
  erase(key: string): Promise<void>;
}

/**
 * @param states - every adapter as it is known now, by key.
 * @param wake - called with the key of an adapter for which `keep` has something to do.
 */
export function createKeeper({
  deps,
  adapters,
  states,
  replicas,
  wake,
  signal,
}: {
  deps: ServeServiceDeps;
  adapters: KvBucket<AdapterState>;
  states: ReadonlyMap<string, AdapterState>;
  replicas: (of: AdapterState) => Iterable<ReplicaState>;
  wake: (key: string) => void;
  signal: AbortSignal;
}): Keeper {
  const { log, resyncMs = 2000 } = deps;
  /** Adapters with something that time, replicas or the object store decide. */
  const open = new Set<string>();

  const decide = (state: AdapterState): AdapterState => {
    const now = Date.now();
    const moved = decideAwaiting(state, { name: nameOf(addressOf(state)), replicas: replicas(state), now }) ?? state;
    return (nextLapse(moved) ?? now) < now ? applyKeep(moved, new Date(now).toISOString()) : moved;
  };
  const toErase = ({ versions }: AdapterState) => versions.filter(({ status, erased }) => status === "deleted" && erased !== true);
  const isDue = (key: string): boolean => {
    const state = open.has(key) ? states.get(key) : undefined;
    return state !== undefined && (decide(state) !== state || toErase(state).length > 0);
  };
  // Neither the passing of time nor a replica's proof changes an adapter's entry.
  const timer = setInterval(
    () => {
      for (const key of open) if (isDue(key)) wake(key);
    },
    Math.min(resyncMs, 500),
  );
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });

  return {
    isDue,
    see(key, state) {
      if (state !== undefined && (state.awaiting || nextLapse(state) !== undefined || toErase(state).length > 0)) {
        open.add(key);
        if (isDue(key)) wake(key);
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
    async erase(key) {
      const state = open.has(key) ? (await adapters.get(key))?.value : undefined;
      for (const version of state === undefined ? [] : toErase(state)) await eraseVersion(state as AdapterState, version, deps, adapters);
    },
  };
}
