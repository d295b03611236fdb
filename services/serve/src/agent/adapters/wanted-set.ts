/** The wanted set: which adapters KV `adapters` wants of one replica, by the name that each has in the engine. */
import type { AdapterState } from "@loraline/contracts";
import { rankOf } from "../../version-rank.ts";
import type { WantedAdapter } from "./decide-adapters.ts";

export interface WantedSet {
  /** By LoRA name. */
  readonly adapters: ReadonlyMap<string, WantedAdapter>;
  /** Whether every entry that was in the bucket has been taken. Until then, an adapter that is not in the set may still be wanted. */
  readonly isComplete: boolean;
  markComplete(): void;
  /**
   * Takes an entry of KV `adapters` (key `<tenant>.<adapter>`); undefined: the entry was removed.
   * @returns LoRA names that are wanted of this adapter now, and names that were wanted before and are not any more; undefined: the
   * entry neither concerns this replica nor did so before.
   */
  take(key: string, state: AdapterState | undefined): { wanted: string[]; gone: string[] } | undefined;
  /** LoRA names that are wanted of one adapter, by the adapter's key. */
  namesOf(key: string): readonly string[];
}

export function createWantedSet({ engine, replica }: { engine: string; replica: string }): WantedSet {
  const adapters = new Map<string, WantedAdapter>();
  const namesByKey = new Map<string, string[]>();
  let isComplete = false;
  return {
    adapters,
    get isComplete() {
      return isComplete;
    },
    markComplete() {
      isComplete = true;
    },
    take(key, state) {
      const now = state === undefined || state.engine !== engine ? [] : wantedOf(state, replica);
      const before = namesByKey.get(key) ?? [];
      if (now.length === 0 && before.length === 0) return undefined;
      const wanted = now.map(({ loraName }) => loraName);
      const gone = before.filter((name) => !wanted.includes(name));
      for (const name of gone) adapters.delete(name);
      for (const adapter of now) adapters.set(adapter.loraName, adapter);
      if (wanted.length === 0) namesByKey.delete(key);
      else namesByKey.set(key, wanted);
      return { wanted, gone };
    },
    namesOf: (key) => namesByKey.get(key) ?? [],
  };
}

/** What the state of one adapter wants of one replica: its desired versions, except those that are placed on other replicas. */
const wantedOf = (state: AdapterState, replica: string): WantedAdapter[] =>
  state.versions
    .filter(({ status, replicas }) => status === "desired" && (replicas?.includes(replica) ?? true))
    .map((version) => ({
      tenant: state.tenant,
      adapter: state.adapter,
      version: version.version,
      digest: version.digest,
      loraName: version.engineName,
      manifest: version.manifest,
      evidence: version.evidence,
      trace: version.trace,
      rank: rankOf(state, version),
    }));
