/** The wanted set: which versions KV `assignments` wants of one replica, by the name that each has in the engine. */
import { type Assignment, parseAdapterKey, parseAssignmentKey } from "@loraline/contracts";
import type { WantedAdapter } from "./decide-adapters.ts";

export interface WantedSet {
  /** By LoRA name. */
  readonly adapters: ReadonlyMap<string, WantedAdapter>;
  /**
   * Whether every entry that was in the bucket has been taken, and the controller has said that they were complete. Until then, a version
   * that is not in the set may still be wanted.
   */
  readonly isComplete: boolean;
  markComplete(): void;
  /**
   * Takes an entry about this replica, or about every one; undefined: the entry was removed.
   * @returns the adapter's key, LoRA names that are wanted of it now, and names that were wanted before and are not any more; undefined:
   * the entry is about no adapter.
   */
  take(key: string, entry: Assignment | undefined): { adapterKey: string; wanted: string[]; gone: string[] } | undefined;
  /** LoRA names that are wanted of one adapter, by the adapter's key. */
  namesOf(key: string): readonly string[];
}

export function createWantedSet(): WantedSet {
  const adapters = new Map<string, WantedAdapter>();
  /** By the adapter's key, then by the entry's: one that is for this replica alone, and one that is for every replica. */
  const entries = new Map<string, Map<string, WantedAdapter[]>>();
  let isComplete = false;
  /** What `namesOf` answers: asked at every step of an adapter, and changed only by its entries. */
  const names = new Map<string, readonly string[]>();
  const namesOf = (key: string): readonly string[] => names.get(key) ?? [];
  const namesIn = (ofAdapter: ReadonlyMap<string, WantedAdapter[]>): string[] => [
    ...new Set([...ofAdapter.values()].flatMap((wanted) => wanted.map(({ loraName }) => loraName))),
  ];
  return {
    adapters,
    get isComplete() {
      return isComplete;
    },
    markComplete() {
      isComplete = true;
    },
    take(key, entry) {
      const adapterKey = parseAssignmentKey(key)?.adapterKey;
      if (adapterKey === undefined) return undefined;
      const before = namesOf(adapterKey);
      const ofAdapter = entries.get(adapterKey) ?? new Map<string, WantedAdapter[]>();
      if (entry === undefined) ofAdapter.delete(key);
      else ofAdapter.set(key, wantedOf(adapterKey, entry));
      if (ofAdapter.size === 0) entries.delete(adapterKey);
      else entries.set(adapterKey, ofAdapter);
      const wanted = namesIn(ofAdapter);
      if (wanted.length === 0) names.delete(adapterKey);
      else names.set(adapterKey, wanted);
      const gone = before.filter((name) => !wanted.includes(name));
      for (const name of gone) adapters.delete(name);
      for (const each of [...ofAdapter.values()].flat()) adapters.set(each.loraName, each);
      return { adapterKey, wanted, gone };
    },
    namesOf,
  };
}

const wantedOf = (adapterKey: string, { versions }: Assignment): WantedAdapter[] =>
  versions.map(({ engineName, priority, ...version }) => ({
    ...parseAdapterKey(adapterKey),
    ...version,
    loraName: engineName,
    rank: priority,
  }));
