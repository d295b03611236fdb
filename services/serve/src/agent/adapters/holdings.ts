/** What a replica holds, in the words of KV `holdings` and `replicas`. */
import { adapterKey, type Digest, type ReplicaAdapter, type ReplicaReport } from "@loraline/contracts";
import { partsOfLoraName } from "../../lora-names.ts";
import type { AdapterMemory } from "./adapter-memory.ts";
import type { WantedSet } from "./wanted-set.ts";

export interface ReplicaView {
  wanted: Pick<WantedSet, "adapters" | "namesOf">;
  memory: Pick<AdapterMemory, "currentOf" | "leaving">;
  /** LoRA names that are worked on, with the time since when, ms since the epoch. */
  inWork: ReadonlyMap<string, { readonly since: number }>;
  /** What the engine lists, LoRA names with paths; undefined: not known. */
  listed: ReadonlyMap<string, string | null> | undefined;
}

/**
 * What there is to say of one adapter (`<tenant>.<adapter>`). Nothing is said of a version that is wanted but not begun, nor, for its first
 * `quietMs`, of one that is being loaded: most are proven by then, and one message says it all.
 */
export function holdingsOf(key: string, { wanted, memory, inWork, listed }: ReplicaView, now: number, quietMs: number): ReplicaAdapter[] {
  const holdings: ReplicaAdapter[] = [];
  for (const name of wanted.namesOf(key)) {
    const one = wanted.adapters.get(name);
    if (one === undefined) continue;
    const { tenant, adapter, version, digest } = one;
    const common = { tenant, adapter, version, digest, engineName: name };
    const known = memory.currentOf(name);
    const work = inWork.get(name);
    if (known !== undefined) {
      const { state, proof, error, blame, at } = known;
      holdings.push({ ...common, state, blame, proof, error, at });
    } else if (work !== undefined && now - work.since >= quietMs) {
      holdings.push({ ...common, state: "loading", proof: null, error: null, at: new Date(work.since).toISOString() });
    }
  }
  for (const [name, { since, error }] of memory.leaving) {
    const parts = partsOfLoraName(name);
    const digest = digestOfPath(listed?.get(name));
    if (adapterKey(parts) !== key || wanted.adapters.has(name) || digest === undefined) continue;
    const at = new Date(since === 0 ? now : since).toISOString();
    holdings.push({ ...parts, digest, engineName: name, state: "draining", proof: null, error, at });
  }
  return holdings;
}

/** How many adapters are in which state. */
export function countsOf({ wanted, memory }: Pick<ReplicaView, "wanted" | "memory">): ReplicaReport["counts"] {
  const counts = { wanted: wanted.adapters.size, proven: 0, retrying: 0, quarantined: 0, refused: 0, draining: memory.leaving.size };
  for (const name of wanted.adapters.keys()) {
    const known = memory.currentOf(name);
    if (known !== undefined) counts[known.state] += 1;
  }
  return counts;
}

/** Adapters are loaded from `<dir>/<hex of the digest>`. */
export const digestOfPath = (path: string | null | undefined): Digest | undefined => {
  const hex = path?.split("/").at(-1) ?? "";
  return /^[0-9a-f]{64}$/.test(hex) ? `sha256:${hex}` : undefined;
};
